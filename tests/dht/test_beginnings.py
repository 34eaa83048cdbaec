import json
from pathlib import Path

import pytest

from dht.beginnings import Beginning, read_beginnings, write_beginning
from dht.ident import find_proof
from dht.identity import Identity
from dht.rules import Rules

ALICE = Identity.from_seed(bytes(range(32)))


def test_what_is_kept_of_other_swarms_stays(tmp_path: Path):
    path = tmp_path / "ident.json"
    one, other = Beginning(1, 2, 3), Beginning(4, 5, 6)
    write_beginning(path, ALICE.peer_id, "aa", one)
    write_beginning(path, ALICE.peer_id, "bb", other)
    assert read_beginnings(path, ALICE.peer_id) == {"aa": one, "bb": other}
    assert [each.name for each in tmp_path.iterdir()] == ["ident.json"]
    assert read_beginnings(path, Identity.ephemeral().peer_id) == {}


def test_what_is_kept_of_other_identities_stays(tmp_path: Path):
    path, other = tmp_path / "ident.json", Identity.ephemeral()
    one, two = Beginning(1, 2, 3), Beginning(4, 5, 6)
    write_beginning(path, ALICE.peer_id, "aa", one)
    write_beginning(path, other.peer_id, "aa", two)
    assert read_beginnings(path, ALICE.peer_id) == {"aa": one}
    assert read_beginnings(path, other.peer_id) == {"aa": two}
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "somebody": {"aa": 7}}))
    write_beginning(path, ALICE.peer_id, "bb", two)
    assert (len(read_beginnings(path, ALICE.peer_id)), len(read_beginnings(path, other.peer_id))) == (2, 1)
    assert set(json.loads(path.read_text())) == {ALICE.peer_id, other.peer_id}


def test_a_file_never_becomes_too_long_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dht.beginnings.MAX_FILE_BYTES", 1000)
    path = tmp_path / "ident.json"
    for number in range(20):
        peer_id = Identity.ephemeral().peer_id
        write_beginning(path, peer_id, "aa", Beginning(number, 2, 3))
        assert read_beginnings(path, peer_id) == {"aa": Beginning(number, 2, 3)}


@pytest.mark.parametrize(
    "entry",
    [
        7,
        [],
        {"aa": 7},
        {"aa": {"created_epoch": 1}},
        {"aa": {"created_epoch": -1, "nonce": 1, "epoch_s": 1}},
        {"aa": {"created_epoch": "1", "nonce": 1, "epoch_s": 1}},
        {"aa": {"created_epoch": 1, "nonce": 2**64, "epoch_s": 1}},
        {"aa": {"created_epoch": 1, "nonce": 1, "epoch_s": 1, "more": 1}},
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, entry):
    path = tmp_path / "ident.json"
    path.write_text(json.dumps({ALICE.peer_id: entry}))
    assert read_beginnings(path, ALICE.peer_id) == {}
    path.write_text("{")
    assert read_beginnings(path, ALICE.peer_id) == {}
    write_beginning(path, ALICE.peer_id, "aa", Beginning(1, 2, 3))
    assert read_beginnings(path, ALICE.peer_id) == {"aa": Beginning(1, 2, 3)}


def test_a_beginning_is_believed_where_its_epoch_has_begun_and_its_proof_is_hard_enough():
    rules, now_s = Rules(epoch_s=60, proof_of_work_bits=6), 6000.0
    good = Beginning(99, find_proof(ALICE.peer_id, 99, 6), 60)
    assert good.holds(ALICE.peer_id, rules, now_s)
    assert good.since_s == 5940
    assert not good.holds(ALICE.peer_id, Rules(epoch_s=61, proof_of_work_bits=6), now_s)
    assert not good.holds(ALICE.peer_id, Rules(epoch_s=60, proof_of_work_bits=40), now_s)
    assert not good.holds(ALICE.peer_id, rules, 5939.0)
