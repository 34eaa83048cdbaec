"""A calibration that one verifier was given reaches a server and a client that were given none, and is judged by.

Real processes on loopback. The model is random and tiny; its calibration is made here, by the function behind ``efedllm
calibrate``, of so few chunks that its percentiles are rough.
"""

import contextlib
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from dht.identity import Identity
from node import AutoDistributedModelForCausalLM
from node.calibrations.seeker import CALIBRATIONS
from node.check.calibration import encode_calibration
from node.client.audit_book import Outcome
from node.config import IDENTITY
from node.verify.client_judge import judge_for_client
from tests.node.verify.tiny import Tiny
from tests.processes import NodeProcess, bootstrap, run_command, servers

PATIENCE_S = 45.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    return directory, Tiny(directory).calibration


def event_of(process, name):
    until_s = time.monotonic() + PATIENCE_S
    while True:
        event = process.events.get(timeout=max(0.0, until_s - time.monotonic()))
        assert event is not None, process.errors
        if event["event"] == name:
            return event


def kept(home):
    return [path.read_bytes() for path in (home / CALIBRATIONS).glob("*.json")]


def audited(model):
    """Have a session of a whole chunk, and return what its audits have measured."""
    results = []
    model.on_audited(results.append)
    ids = torch.randint(3, 100, (1, 70), generator=torch.Generator().manual_seed(7))
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
    assert model._connector.settle(PATIENCE_S)
    return results


@contextlib.contextmanager
def swarm_of(directory, home, file):
    verifier_home = home / "verifier"
    verifier_home.mkdir(parents=True)
    anchor = Identity.load_or_create(verifier_home / IDENTITY).peer_id
    with (
        bootstrap(home / "bootstrap", "--anchors", anchor) as (_, join),
        servers(directory, join, [(0, 2)], home, "--num-threads", "1") as (server,),
    ):
        command = ["verify", str(directory), "--join", join, "--calibration", str(file), "--num-threads", "1"]
        verifier = NodeProcess([*command, "--canaries-per-epoch", "1"], verifier_home)
        try:
            assert verifier.ready()["peer_id"] == anchor
            yield SimpleNamespace(join=join, server=server, verifier=verifier)
        finally:
            verifier.signal(signal.SIGTERM)
            verifier.stop()


def test_a_server_and_a_client_judge_by_what_an_anchor_was_given(model, tmp_path, monkeypatch):
    directory, calibration = model
    data, file, home = encode_calibration(calibration), tmp_path / "calibration.json", tmp_path / "client"
    file.write_bytes(data)
    home.mkdir()
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    with swarm_of(directory, tmp_path / "swarm", file) as swarm:
        found = event_of(swarm.server, "calibration")
        assert found["sha256"] == calibration.digest.hex()
        assert kept(swarm.server.home) == [data]
        judge = judge_for_client(str(directory), None, None, home)
        with AutoDistributedModelForCausalLM.from_pretrained(
            str(directory), join=swarm.join, audit_rate=1.0, judge=judge
        ) as client:
            until_s = time.monotonic() + PATIENCE_S
            while judge.current.calibration is None:
                assert time.monotonic() < until_s
                time.sleep(0.05)
            results = audited(client)
    assert kept(home) == [data]
    passed = [result for result in results if result.outcome is Outcome.PASS]
    assert passed, results
    assert {result.measured.calibration for result in passed} == {calibration.digest}
    assert not [result for result in results if result.outcome is Outcome.FAIL]


def test_a_server_judges_by_what_the_bootstrap_was_given(model, tmp_path):
    directory, calibration = model
    data, file = encode_calibration(calibration), tmp_path / "calibration.json"
    file.write_bytes(data)
    with (
        bootstrap(tmp_path / "bootstrap", "--calibration", str(file)) as (_, join),
        servers(directory, join, [(0, 2)], tmp_path, "--num-threads", "1") as (server,),
    ):
        assert event_of(server, "calibration")["sha256"] == calibration.digest.hex()
        assert kept(server.home) == [data]


def test_a_bootstrap_founds_nothing_with_a_calibration_that_cannot_be_used(tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    ended = run_command(["bootstrap", "--calibration", str(file)], tmp_path / "bootstrap")
    assert (ended.returncode, ended.stdout) == (23, "")
    assert "make it with `efedllm calibrate`" in ended.stderr
    assert not (tmp_path / "bootstrap" / "bootstrap.json").exists()
