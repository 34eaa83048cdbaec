"""What a bootstrap founds, keeps and takes over, and that whoever joins has its rules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dht.identity import Identity
from dht.parameters import JoinCode, SwarmParameters, parameters_hash
from dht.records import Envelope
from dht.rules import Rules
from dht.swarm import Swarm
from node.errors import UserError
from node.run.bootstrap import BootstrapOptions, Founding, _load_or_found, _save
from tests.processes import bootstrap

FOUNDER = Identity.ephemeral()


def options_of(home: Path, **changes) -> BootstrapOptions:
    plain = BootstrapOptions(
        home=home, name="lab", private=True, listen=(), announce=(), join=None, epoch_s=None, proof_of_work_bits=None,
        exit_with_stdin=False,
    )  # fmt: skip
    return replace(plain, **changes)


def founded(home: Path, **changes) -> Founding:
    """What stands in the state directory, or would after the first start."""
    path = home / "bootstrap.json"
    home.mkdir(exist_ok=True)
    founding = _load_or_found(path, FOUNDER, options_of(home, **changes))
    _save(path, founding)
    return founding


def test_a_founder_signs_the_rules_that_were_asked_for_and_keeps_them(tmp_path: Path):
    first = founded(tmp_path, epoch_s=30, proof_of_work_bits=4)
    assert first.rules() == Rules(epoch_s=30, proof_of_work_bits=4)
    assert first.parameters_hash == parameters_hash(first.parameters)
    parameters = SwarmParameters.from_body(Envelope.from_bytes(first.parameters).body)
    assert (parameters.founder, parameters.name, parameters.private) == (FOUNDER.peer_id, "lab", True)
    assert founded(tmp_path) == first
    assert founded(tmp_path, epoch_s=30, proof_of_work_bits=4) == first


@pytest.mark.parametrize(("private", "bits"), [(True, 0), (False, 22)])
def test_epochs_take_six_hours_and_public_swarms_ask_for_proof_of_work_unless_said_otherwise(tmp_path, private, bits):
    assert founded(tmp_path, private=private).rules() == Rules(proof_of_work_bits=bits)


@pytest.mark.parametrize("changes", [{"epoch_s": 60}, {"proof_of_work_bits": 5}])
def test_a_swarms_rules_cannot_be_changed_afterwards(tmp_path: Path, changes):
    founded(tmp_path, epoch_s=30, proof_of_work_bits=4)
    with pytest.raises(UserError, match="use another EFEDLLM_HOME"):
        founded(tmp_path, **changes)


def test_a_founder_is_the_first_anchor_of_its_swarm_and_names_others_once(tmp_path: Path):
    others = tuple(Identity.ephemeral().peer_id for _ in range(2))
    assert founded(tmp_path / "alone").anchors() == (FOUNDER.peer_id,)
    first = founded(tmp_path / "with others", anchors=(*others, FOUNDER.peer_id))
    assert first.anchors() == (FOUNDER.peer_id, *others)
    assert founded(tmp_path / "with others", anchors=others[:1]) == first, "said again, it is no other wish"
    with pytest.raises(UserError, match="use another EFEDLLM_HOME"):
        founded(tmp_path / "with others", anchors=(Identity.ephemeral().peer_id,))
    with pytest.raises(UserError, match="at most 64 anchors"):
        founded(tmp_path / "crowd", anchors=tuple(Identity.ephemeral().peer_id for _ in range(64)))


def test_a_public_swarm_does_not_become_private(tmp_path: Path):
    founded(tmp_path, private=False)
    with pytest.raises(UserError, match="is public"):
        founded(tmp_path, private=True)


def test_a_further_bootstrap_takes_the_rules_of_the_swarm_that_it_joins(tmp_path: Path):
    first = founded(tmp_path / "first")
    code = JoinCode((), first.name, first.parameters_hash, first.secret)
    second = founded(tmp_path / "second", join=code)
    assert (second.parameters_hash, second.parameters, second.rules()) == (first.parameters_hash, b"", None)
    for changes in ({"epoch_s": 60}, {"proof_of_work_bits": 5}, {"anchors": (FOUNDER.peer_id,)}):
        with pytest.raises(UserError, match="its rules already"):
            founded(tmp_path / "third", join=code, **changes)
        with pytest.raises(UserError, match="its founder's"):
            founded(tmp_path / "second", join=code, **changes)


@pytest.mark.parametrize(
    "damage",
    [
        {"parameters_hash": "00" * 32},
        {"parameters": "c0"},
        {"parameters": "zz"},
        {"secret": 7},
        {"listen": None},
    ],
)
def test_a_damaged_state_is_named_and_left_alone(tmp_path: Path, damage):
    founded(tmp_path)
    path = tmp_path / "bootstrap.json"
    damaged = json.dumps(json.loads(path.read_text()) | damage)
    path.write_text(damaged)
    with pytest.raises(UserError, match="cannot be read"):
        founded(tmp_path)
    assert path.read_text() == damaged


async def joined(code: str) -> SwarmParameters | None:
    """What a client knows of a swarm as soon as it has joined."""
    async with Swarm(Identity.ephemeral(), join=JoinCode.parse(code), client_mode=True) as client:
        return client.parameters


async def test_whoever_joins_has_the_founders_rules_also_through_another_bootstrap_when_the_founder_is_gone(tmp_path):
    with bootstrap(tmp_path / "first", "--epoch", "7", "--proof-of-work", "3") as (founder, code):
        parameters = await joined(code)
        assert parameters is not None
        assert parameters.rules == Rules(epoch_s=7, proof_of_work_bits=3)
        with bootstrap(tmp_path / "second", "--join", code) as (_, code_of_both):
            assert founder.stop() == 0
            assert await joined(code_of_both) == parameters
    with bootstrap(tmp_path / "second") as (_, code_again):
        assert await joined(code_again) == parameters
