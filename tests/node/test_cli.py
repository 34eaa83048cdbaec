"""What the command line hands on, without running what it names."""

import pytest

from dht.identity import Identity
from node.cli import _generation_options, _parser
from node.errors import UserError
from node.wire import CODECS

SWARM = f"/ip4/127.0.0.1/tcp/31337/p2p/{Identity.ephemeral().peer_id}"


def options_of(command, *arguments):
    return _generation_options(_parser().parse_args([command, "embedded", "--join", SWARM, *arguments]), "")


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_of_the_wire_can_be_asked_for(codec):
    assert options_of("generate", "--prompt", "x", "--codec", codec).codec == codec
    assert options_of("chat", "--codec", codec).codec == codec


def test_the_codec_is_that_of_the_dtype_unless_another_is_asked_for():
    assert options_of("chat", "--dtype", "bfloat16").codec == "auto"


def test_a_codec_that_does_not_exist_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        options_of("chat", "--codec", "int3")
    assert caught.value.code == 2
    assert "int8" in capsys.readouterr().err


def test_which_route_and_which_servers_can_be_asked_for():
    peers = [Identity.ephemeral().peer_id for _ in range(2)]
    asked = options_of("chat", "--policy", "widest", "--only", peers[0], "--only", peers[1])
    assert (asked.policy, asked.only_peers) == ("widest", tuple(peers))
    told_nothing = options_of("generate", "--prompt", "x")
    assert (told_nothing.policy, told_nothing.only_peers, told_nothing.explain) == ("fastest", None, False)
    assert options_of("generate", "--prompt", "x", "--explain").explain


def test_a_calibration_can_be_asked_for(capsys):
    asked = _parser().parse_args(["calibrate", "embedded", "--out", "x.json", "--chunks", "9", "--full", "--json"])
    assert (str(asked.out), asked.chunks, asked.full, asked.json) == ("x.json", 9, True, True)
    told_nothing = _parser().parse_args(["calibrate", "embedded"])
    assert (str(told_nothing.out), told_nothing.text, told_nothing.full) == ("calibration.json", None, False)
    for wrong in (["--chunks", "0"], ["--json", "--events", "json"]):
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args(["calibrate", "embedded", *wrong])
        assert caught.value.code == 2


def test_a_bootstrap_can_be_asked_for_epochs_and_proof_of_work(capsys):
    asked = _parser().parse_args(["bootstrap", "--epoch", "5", "--proof-of-work", "0"])
    assert (asked.epoch, asked.proof_of_work) == (5, 0)
    told_nothing = _parser().parse_args(["bootstrap"])
    assert (told_nothing.epoch, told_nothing.proof_of_work) == (None, None)
    for wrong in (["--epoch", "0"], ["--epoch", "1.5"], ["--proof-of-work", "41"], ["--proof-of-work", "-1"]):
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args(["bootstrap", *wrong])
        assert caught.value.code == 2


def test_how_much_is_audited_can_be_asked_for_and_switched_off(capsys):
    assert options_of("generate", "--prompt", "x").audit_rate is None
    assert options_of("chat", "--audit-rate", "0").audit_rate == 0.0
    assert options_of("chat", "--audit-rate", "0.5").audit_rate == 0.5
    assert options_of("generate", "--prompt", "x").shadow_rate is None
    assert options_of("chat", "--shadow-rate", "0").shadow_rate == 0.0
    with pytest.raises(SystemExit):
        options_of("chat", "--audit-rate", "2")
    assert "from 0 to 1" in capsys.readouterr().err


def test_a_calibration_to_judge_by_can_be_named_and_not_by_a_client_without_weights():
    assert options_of("chat").calibration is None
    assert str(options_of("chat", "--calibration", "x.json").calibration) == "x.json"
    with pytest.raises(UserError, match="judges nothing"):
        options_of("generate", "--prompt", "x", "--thin", "--calibration", "x.json")


def test_a_bootstrap_can_be_given_calibrations():
    asked = _parser().parse_args(["bootstrap", "--calibration", "x.json", "--calibration", "y.json"])
    assert [str(file) for file in asked.calibration] == ["x.json", "y.json"]
    assert _parser().parse_args(["bootstrap"]).calibration == []


def test_a_verifier_can_be_asked_for():
    asked = _parser().parse_args(["verify", "embedded", "--max-memory", "1GiB", "--canaries-per-epoch", "9"])
    assert (asked.max_memory, asked.canaries_per_epoch, asked.calibration) == (2**30, 9, None)
    assert _parser().parse_args(["verify", "embedded"]).canaries_per_epoch == 24
    for wrong in (["--canaries-per-epoch", "0"], ["--max-memory", "much"]):
        with pytest.raises(SystemExit) as caught:
            _parser().parse_args(["verify", "embedded", *wrong])
        assert caught.value.code == 2
