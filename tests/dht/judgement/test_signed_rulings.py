"""What more than half of the anchors have signed alike stands, in whatever order it is read, and nothing else does."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.judgement.outcomes import State
from dht.judgement.signed_rulings import SIGNED_STATES, agreed, record_of
from dht.ruling import Outcome, RulingRecord
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, PEERS, UP, claim_of, play

(RULING,) = play([claim_of()], lambda *_: UP, denies=False, appeals=False).outcomes().rulings
BY_MOST = [record_of(RULING, anchor) for anchor in ANCHORS[:3]]


def without_words(ruling):
    return ruling._replace(why="", level=0, committees=(), tallies=(), defenders=(), phase=None)


@pytest.mark.parametrize("state", sorted(SIGNED_STATES, key=str))
@pytest.mark.parametrize("backed_by", ["", ACCUSER, ACCUSED])
def test_what_was_found_comes_back_as_it_was(state, backed_by):
    found = RULING._replace(state=state, backed_by=backed_by)
    record = RulingRecord.from_body(record_of(found, ANCHORS[0]).to_body())
    (back,) = agreed([record], ANCHORS[:1]).values()
    assert without_words(back) == without_words(found)
    assert back.is_final
    assert back.why == "1 of 1 anchors have signed so."


def test_what_is_open_or_hangs_on_what_was_read_is_not_signed():
    assert {State.PENDING, State.LOCAL}.isdisjoint(SIGNED_STATES)


def test_more_than_half_of_all_anchors_are_needed_and_nobody_else_counts():
    assert set(agreed(BY_MOST, ANCHORS)) == {RULING.claim}
    assert agreed(BY_MOST, ANCHORS)[RULING.claim].why == "3 of 5 anchors have signed so."
    assert agreed(BY_MOST[:2], ANCHORS) == {}
    assert agreed(BY_MOST[:2], ANCHORS[:4]) == {}, "half is not more than half"
    assert agreed([*BY_MOST[:2], *(record_of(RULING, peer) for peer in PEERS[:9])], ANCHORS) == {}
    assert agreed(BY_MOST * 2, ANCHORS[:3] * 2) == agreed(BY_MOST, ANCHORS[:3])
    assert agreed(BY_MOST, ()) == {}


@pytest.mark.parametrize("change", [{"outcome": Outcome.REJECTED}, {"settled_s": RULING.settled_s + 1}, {"index": 5}])
def test_an_anchor_that_signs_two_different_rulings_counts_for_neither(change):
    twice = replace(BY_MOST[0], **change)
    assert agreed([twice, *BY_MOST], ANCHORS) == {}
    assert agreed([twice, *BY_MOST, record_of(RULING, ANCHORS[3])], ANCHORS)[RULING.claim].state is RULING.state
    assert agreed([*BY_MOST[1:], twice], ANCHORS) == {}, "it is not alike either"


@given(st.permutations([*BY_MOST, replace(BY_MOST[0], outcome=Outcome.REJECTED), *BY_MOST[:1]]))
def test_the_order_of_records_does_not_matter(records):
    assert agreed(records, ANCHORS) == {}
    assert set(agreed(records, ANCHORS[1:4])) == {RULING.claim}
