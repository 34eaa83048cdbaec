"""What was written down is what is published, whatever happens in between."""

from dataclasses import replace

import pytest

from dht.standing.sightings import Sighting
from dht.verdict import Opinion
from node.claims.notebook import Ballot, Notebook

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
