"""Who dates a record back is found out by whoever looked shortly before, and only by them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contest import Contest
from dht.judgement.docket import record_id
from dht.judgement.timeline import Timeline
from dht.records import Kind
from dht.rules import DEFAULT_RULES
from dht.standing import sightings
from dht.standing.proofs import Proofs
from dht.standing.sightings import Sightings, half_unit_s
from dht.verdict import commit
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, EPOCH, PEERS, UP, claim_of

PATIENCE_S = half_unit_s(DEFAULT_RULES)
CLAIM = claim_of()
KEYS = {Kind.CLAIM: frozenset({(ACCUSER, EPOCH)})}


def test_half_a_unit_is_a_24th_of_an_epoch():
    assert DEFAULT_RULES.epoch_s / 24 == PATIENCE_S


def test_what_comes_between_two_looks_is_seen_at_the_second():
    seen = Sightings()
    seen.look(KEYS, Proofs(), 1000.0, PATIENCE_S)
    seen.look(KEYS, Proofs(claims=(CLAIM,)), 1500.0, PATIENCE_S)
    assert seen.first_seen_s == {CLAIM.hash: 1500.0}
    seen.look(KEYS, Proofs(claims=(CLAIM,)), 1600.0, PATIENCE_S)
    assert seen.first_seen_s == {CLAIM.hash: 1500.0}


def test_what_is_found_at_a_first_look_or_after_a_pause_counts_by_its_signed_time():
    at_first, paused = Sightings(), Sightings()
    at_first.look(KEYS, Proofs(claims=(CLAIM,)), 1000.0, PATIENCE_S)
    paused.look(KEYS, Proofs(), 1000.0, PATIENCE_S)
    paused.look(KEYS, Proofs(claims=(CLAIM,)), 1000.0 + PATIENCE_S, PATIENCE_S)
    for seen in (at_first, paused):
        assert seen.first_seen_s == {}
        seen.look(KEYS, Proofs(claims=(CLAIM,)), 1001.0 + PATIENCE_S, PATIENCE_S)
        assert seen.first_seen_s == {}


ELSEWHERE = {Kind.CLAIM: frozenset({(ACCUSER, EPOCH + 1)})}


def test_a_look_at_other_keys_shows_nothing_of_what_was_signed_before():
    seen = Sightings()
    seen.look(ELSEWHERE, Proofs(), CLAIM.t + 1.0, PATIENCE_S)
    seen.look(KEYS, Proofs(claims=(CLAIM,)), CLAIM.t + 2.0, PATIENCE_S)
    assert seen.first_seen_s == {}


def test_who_takes_a_new_id_cannot_date_a_claim_back_into_the_time_of_who_was_looking():
    seen, now_s = Sightings(), CLAIM.t - 1.0
    for _ in range(40):
        seen.look(ELSEWHERE, Proofs(), now_s, PATIENCE_S)
        now_s += PATIENCE_S / 2
    seen.look(ELSEWHERE | KEYS, Proofs(claims=(CLAIM,)), now_s, PATIENCE_S)
    assert seen.first_seen_s == {CLAIM.hash: now_s}
    assert not Timeline.of(CLAIM.t, DEFAULT_RULES).is_claim_timely(now_s)


def test_a_claim_that_was_not_there_when_it_ought_to_have_been_is_late_whatever_pauses_there_were():
    """Nobody looks at the keys of old epochs at every turn, and nobody runs without a pause for two weeks."""
    looked_s = CLAIM.t + 2 * PATIENCE_S
    for first_s, is_late in ((looked_s, True), (looked_s - 1.0, False)):
        seen, now_s = Sightings(), first_s + 40 * PATIENCE_S
        seen.look(KEYS, Proofs(), first_s, PATIENCE_S)
        seen.look(ELSEWHERE, Proofs(), now_s - 1.0, PATIENCE_S)
        seen.look(KEYS, Proofs(claims=(CLAIM,)), now_s, PATIENCE_S)
        assert seen.first_seen_s == ({CLAIM.hash: now_s} if is_late else {})
    forgetful = Sightings()
    forgetful.look(KEYS, Proofs(), looked_s, PATIENCE_S)
    forgetful.forget_before(EPOCH + 1)
    forgetful.look(KEYS, Proofs(claims=(CLAIM,)), looked_s + 40 * PATIENCE_S, PATIENCE_S)
    assert forgetful.first_seen_s == {}


def test_a_restart_forgets_nothing_and_believes_nothing_new():
    before = Sightings()
    before.look(KEYS, Proofs(), 1000.0, PATIENCE_S)
    before.look(KEYS, Proofs(claims=(CLAIM,)), 1010.0, PATIENCE_S)
    after = Sightings(before.take_new())
    other = replace(CLAIM, number=1)
    after.look(KEYS, Proofs(claims=(CLAIM, other)), 1020.0, PATIENCE_S)
    assert after.first_seen_s == {CLAIM.hash: 1010.0}
    assert [each.record for each in after.take_new()] == [record_id(other)]
    after.forget_before(EPOCH + 1)
    assert after.first_seen_s == {}


JUROR, FLOODER, TRUSTED = PEERS[10:13]


def verdict_of(member, number, claim=CLAIM):
    return commit(member, EPOCH, claim.hash, 1, UP, number.to_bytes(32, "big"), claim.t + 200)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sightings, "MAX_SIGHTINGS", 40)
    monkeypatch.setattr(sightings, "MAX_OF_STRANGERS", 20)
    monkeypatch.setattr(sightings, "MAX_OF_AUTHOR", 8)


def watching(*authors, **whose):
    """Look at what stands under some keys, so that it is known what comes next; return how to look again."""
    keys = {kind: frozenset((each, EPOCH) for each in authors) for kind in (Kind.CLAIM, Kind.CONTEST, Kind.VERDICT)}
    seen = Sightings()
    seen.look(keys, Proofs(), 1000.0, PATIENCE_S, **whose)
    return seen, lambda now_s, **records: seen.look(keys, Proofs(**records), now_s, PATIENCE_S, **whose)


def test_the_flood_of_one_author_takes_no_place_of_others_and_hides_nothing_of_its_own(small):
    flood = tuple(verdict_of(FLOODER, number) for number in range(60))
    seen, look = watching(ACCUSER, FLOODER, JUROR)
    look(1010.0, claims=(CLAIM,), verdicts=flood)
    look(1020.0, claims=(CLAIM,), verdicts=(*flood, verdict_of(JUROR, 1), verdict_of(FLOODER, 99)))
    assert seen.first_seen_s[record_id(verdict_of(JUROR, 1))] == 1020.0
    assert seen.first_seen_s[record_id(verdict_of(FLOODER, 99))] == 1020.0, "who floods could date back"
    kept = {each.record for each in seen.take_new()}
    assert {CLAIM.hash, record_id(verdict_of(JUROR, 1))} < kept
    assert len(kept & {record_id(each) for each in flood}) == 8


def test_what_strangers_sign_takes_no_place_of_those_who_are_heeded_nor_of_whom_these_accuse(small):
    mine, theirs = claim_of(TRUSTED), [claim_of(peer, lane=number) for number, peer in enumerate(PEERS[20:60])]
    denials = [Contest(who, EPOCH, mine.hash, TRUSTED, 1, mine.t + 5) for who in (ACCUSED, ANCHORS[0])]
    authors = (TRUSTED, JUROR, ACCUSED, *PEERS[20:60], ANCHORS[0])
    seen, look = watching(*authors, anchors=[ANCHORS[0]], heeded={TRUSTED, JUROR})
    look(1010.0, claims=tuple(theirs))
    assert len(seen.take_new()) == 20
    look(1020.0, claims=(*theirs, mine), contests=tuple(denials), verdicts=(verdict_of(JUROR, 1, mine),))
    assert {each.record for each in seen.take_new()} == {
        mine.hash, *map(record_id, denials), record_id(verdict_of(JUROR, 1, mine))
    }  # fmt: skip


def test_who_runs_is_not_blinded_by_any_number_of_authors_and_remembers_no_more_than_it_reads(small):
    crowd = tuple(claim_of(peer, lane=number) for number, peer in enumerate(PEERS[20:160]))
    seen, look = watching(ACCUSER, *PEERS[20:160])
    look(1010.0, claims=crowd)
    look(1020.0, claims=(*crowd, CLAIM))
    assert seen.first_seen_s[CLAIM.hash] == 1020.0
    look(1030.0, claims=(*crowd, CLAIM))
    assert seen.first_seen_s[CLAIM.hash] == 1020.0
    assert len(seen.take_new()) == 20
    look(1040.0)
    assert len(seen.first_seen_s) == 20


def test_what_had_no_place_is_not_taken_for_new_when_there_is_one(small):
    """Then an honest record would be taken for late, because strangers' were forgotten."""
    old = tuple(claim_of(peer, lane=number, epoch=EPOCH - 1) for number, peer in enumerate(PEERS[20:60]))
    seen, look = watching(ACCUSER, *PEERS[20:60])
    look(1010.0, claims=old)
    look(1020.0, claims=(*old, CLAIM))
    seen.forget_before(EPOCH)
    look(1030.0, claims=(*old, CLAIM))
    assert seen.first_seen_s == {CLAIM.hash: 1020.0}


@given(st.lists(st.tuples(st.floats(0.1, 2000.0), st.booleans()), max_size=12))
def test_nothing_is_seen_earlier_than_it_was_there(looks):
    """The record is there from one look on for good; it is never dated before the look at which it came."""
    seen, now_s, came_s = Sightings(), 10_000.0, None
    for pause_s, comes in looks:
        now_s += pause_s
        came_s = now_s if came_s is None and comes else came_s
        seen.look(KEYS, Proofs(claims=(CLAIM,) if came_s is not None else ()), now_s, PATIENCE_S)
    assert set(seen.first_seen_s.values()) <= {came_s}
