"""Models in one swarm and swarms on one machine do not mix; who lacks a private swarm's code is not let in."""

import dataclasses
import json

import pytest
import torch

from dht.errors import NotAdmitted
from dht.parameters import JoinCode
from node import AutoDistributedModelForCausalLM
from node.model.checkpoint import Checkpoint
from tests.families import NUM_BLOCKS
from tests.processes import bootstrap, run_command, servers
from tests.swarm.models import LLAMA, SPANS, save

WHOLE = ((0, NUM_BLOCKS),)
TEXT = torch.arange(3, 15).unsqueeze(0)


@pytest.fixture(scope="module")
def namesake(join, llama, tmp_path_factory):
    """Another model of the same name and shape, with other weights, whole on one server of the same swarm."""
    directory = tmp_path_factory.mktemp("other") / llama.directory.name
    local = save(directory, "llama", LLAMA, seed=1)
    with (
        servers(directory, join, WHOLE, tmp_path_factory.mktemp("namesake")),
        AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join) as remote,
    ):
        yield dataclasses.replace(llama, directory=directory, local=local, remote=remote, servers=[])


@pytest.fixture(scope="module")
def second_swarm(llama, tmp_path_factory):
    """The join code of another private swarm, where one server has the whole llama of the first."""
    home = tmp_path_factory.mktemp("second")
    with bootstrap(home / "bootstrap") as (_, code), servers(llama.directory, code, WHOLE, home):
        yield code


def peers_of_a_session(model):
    """Return who serves a session of ``model``, and check that its text is that of the local one."""
    with model.remote.inference_session(max_length=40) as session:
        assert torch.equal(generate(model.remote), generate(model.local))
        return {stage.peer_id for stage in session.cache.route.stages}


def generate(model):
    return model.generate(TEXT, max_new_tokens=6)


def status_of(join, home):
    done = run_command(["status", "--json", "--join", join], home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["models"]


def uid_of(model):
    return Checkpoint.open(str(model.directory)).short_name


def test_a_client_of_one_model_never_meets_the_servers_of_its_namesake(join, llama, namesake, tmp_path):
    models = status_of(join, tmp_path)
    serving = {uid: {server["peer_id"] for server in model["servers"]} for uid, model in models.items()}
    assert {uid_of(llama), uid_of(namesake)} <= set(serving)
    assert uid_of(llama).split("@")[0] == uid_of(namesake).split("@")[0]
    assert len(serving[uid_of(llama)]) == len(SPANS)
    assert len(serving[uid_of(namesake)]) == 1
    assert peers_of_a_session(llama) == serving[uid_of(llama)]
    assert peers_of_a_session(namesake) == serving[uid_of(namesake)]
    assert not torch.equal(generate(llama.local), generate(namesake.local)), "their texts do not tell the two apart"


def test_the_same_model_in_two_swarms_is_served_by_each_swarm_alone(join, llama, second_swarm, tmp_path):
    models = status_of(second_swarm, tmp_path)
    assert list(models) == [uid_of(llama)]
    (server,) = models[uid_of(llama)]["servers"]
    with AutoDistributedModelForCausalLM.from_pretrained(str(llama.directory), join=second_swarm) as remote:
        assert peers_of_a_session(dataclasses.replace(llama, remote=remote)) == {server["peer_id"]}
    assert server["peer_id"] not in peers_of_a_session(llama)


def test_the_code_of_one_swarm_does_not_open_another(join, second_swarm, llama, tmp_path):
    mixed = dataclasses.replace(JoinCode.parse(join), addresses=JoinCode.parse(second_swarm).addresses).encode()
    arguments = ["generate", str(llama.directory), "--join", mixed, "--prompt", "abc", "--max-new-tokens", "2"]
    done = run_command(arguments, tmp_path)
    assert done.returncode == 9, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("efedllm: ")


def test_the_address_of_a_private_swarm_is_not_enough(join, llama, tmp_path):
    addresses = JoinCode.parse(join).addresses
    with pytest.raises(NotAdmitted, match="join with the code"):
        AutoDistributedModelForCausalLM.from_pretrained(str(llama.directory), initial_peers=list(addresses))
    done = run_command(["status", "--join", ",".join(addresses)], tmp_path)
    assert done.returncode == 9, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "join with the code" in done.stderr
