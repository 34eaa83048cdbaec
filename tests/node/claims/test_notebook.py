"""What was written down is what is published, whatever happens in between."""

from dataclasses import replace

import pytest

from dht.claim import ClaimedChunk
from dht.judgement.outcomes import Ruling, State
from dht.standing.sightings import Sighting
from dht.verdict import Opinion
from node.claims.notebook import Ballot, Notebook, kept_rulings
from tests.node.check.session import ACCUSER, held

BALLOT = Ballot(bytes(32), 1, 5, Opinion.UPHELD, b"s" * 32, 500_000, b"envelope")


@pytest.fixture
def notebook(tmp_path):
    opened = Notebook.open(tmp_path / "claims.sqlite")
    yield opened
    opened.close()


def test_a_second_vote_is_not_written_over_the_first(notebook, tmp_path):
    assert notebook.keep_ballot(BALLOT) == BALLOT
    other = replace(BALLOT, opinion=Opinion.REFUTED, salt=b"t" * 32, commitment=b"another")
    assert notebook.keep_ballot(other) == BALLOT
    after_a_crash = Notebook.open(tmp_path / "claims.sqlite")
    assert after_a_crash.keep_ballot(other) == BALLOT
    after_a_crash.close()
    assert notebook.ballot(bytes(32), 2) is None
    assert notebook.keep_ballot(replace(other, level=2)).opinion is Opinion.REFUTED


def test_a_number_is_given_to_one_claim_and_a_chunk_is_claimed_once(notebook):
    assert notebook.numbers_left(5) == [0, 1, 2]
    assert notebook.keep_claim(5, 0, b"chunk", b"one")
    assert not notebook.keep_claim(5, 0, b"other chunk", b"two")
    assert not notebook.keep_claim(6, 0, b"chunk", b"two")
    assert notebook.numbers_left(5) == [1, 2]
    assert notebook.numbers_left(6) == [0, 1, 2]
    assert notebook.claims_since(5) == [b"one"]
    assert notebook.claims_since(6) == []


def test_what_was_seen_first_stays_so(notebook):
    sightings = [Sighting(b"a" * 32, 5, 1000.5), Sighting(b"b" * 32, 6, None)]
    notebook.note_sightings(sightings)
    notebook.note_sightings([Sighting(b"a" * 32, 5, 2000.0)])
    assert sorted(notebook.sightings()) == sightings
    notebook.forget_before(6)
    assert notebook.sightings() == sightings[1:]


def ruling(state=State.UPHELD, backed_by="", **changes):
    receipt = held().receipt
    chunk = ClaimedChunk(receipt.slot, b"s" * 16, 1, 2)
    words = (
        b"c" * 32,
        ACCUSER.peer_id,
        receipt.provider,
        9,
        1,
        chunk,
        state,
        "Nobody denied it in time.",
        1_800_000_000,
    )
    return Ruling(*words)._replace(backed_by=backed_by, **changes)


@pytest.mark.parametrize("state", State)
def test_rulings_come_back_as_they_stood(notebook, state):
    kept = [ruling(state), ruling(state, ACCUSER.peer_id, claim=b"d" * 32, epoch=12)]
    notebook.keep_rulings(kept, [])
    notebook.keep_rulings([ruling(State.REJECTED)], [])
    assert notebook.rulings([]) == {each.claim: each for each in kept}
    notebook.forget_before(100)
    notebook.forget_rulings_before(12)
    assert notebook.rulings([]) == {b"d" * 32: kept[1]}


def test_who_names_other_anchors_is_bound_by_nothing_that_the_old_ones_decided(notebook):
    notebook.keep_rulings([ruling()], ["one", "other"])
    assert set(notebook.rulings(["other", "one"])) == {ruling().claim}
    assert notebook.rulings(["one"]) == {}
    notebook.keep_rulings([ruling(State.REJECTED)], ["one"])
    assert [each.state for each in notebook.rulings(["one"]).values()] == [State.REJECTED]


def test_a_ruling_that_cannot_be_read_is_left_out(notebook):
    notebook.keep_rulings([ruling(), ruling(claim=b"d" * 32)], [])
    notebook._file.execute("UPDATE rulings SET ruling = x'93' WHERE claim = ?", (b"d" * 32,))
    assert set(notebook.rulings([])) == {b"c" * 32}


def test_others_read_what_was_found_while_the_node_runs_and_after_and_leave_no_trace(notebook, tmp_path):
    path = tmp_path / "claims.sqlite"
    notebook.keep_rulings([ruling()], ["one"])
    assert kept_rulings(path, ["one"]) == {ruling().claim: ruling()}
    assert kept_rulings(path, []) == {}
    notebook.close()
    assert kept_rulings(path, ["one"]) == {ruling().claim: ruling()}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["claims.sqlite"]


def test_a_file_that_is_not_there_or_damaged_tells_nothing(tmp_path, caplog):
    path = tmp_path / "claims.sqlite"
    assert kept_rulings(path, []) == {}
    assert not path.exists()
    path.write_bytes(b"no database " * 1000)
    assert kept_rulings(path, []) == {}
    assert "judged anew" in caplog.text
    assert path.read_bytes() == b"no database " * 1000


def test_a_disk_that_was_full_is_written_to_again_when_it_is_not(notebook):
    (pages,) = notebook._file.execute("PRAGMA page_count").fetchone()
    notebook._file.execute(f"PRAGMA max_page_count = {pages}")
    many = [Sighting(number.to_bytes(32, "big"), 5, None) for number in range(1000)]
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            notebook.note_sightings(many)
    notebook._file.execute("PRAGMA max_page_count = 100000")
    notebook.note_sightings(many)
    assert len(notebook.sightings()) == 1000


def test_a_file_damaged_in_the_middle_is_put_aside_too(tmp_path):
    path = tmp_path / "claims.sqlite"
    notebook = Notebook.open(path)
    notebook.note_sightings(Sighting(number.to_bytes(32, "big"), 5, None) for number in range(1000))
    notebook.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"?" * (len(whole) - 8192))
    notebook = Notebook.open(path)
    assert notebook.sightings() == []
    notebook.close()
    assert path.with_suffix(".damaged").exists()


def test_a_damaged_file_is_put_aside_and_the_node_begins_anew(tmp_path, caplog):
    path = tmp_path / "claims.sqlite"
    path.write_bytes(b"no database " * 1000)
    notebook = Notebook.open(path)
    assert notebook.keep_ballot(BALLOT) == BALLOT
    notebook.close()
    assert path.with_suffix(".damaged").read_bytes().startswith(b"no database")
    assert "put aside" in caplog.text
