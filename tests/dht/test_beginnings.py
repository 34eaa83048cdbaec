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
