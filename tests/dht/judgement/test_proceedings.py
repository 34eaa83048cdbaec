"""One case through its levels."""

import itertools
from dataclasses import replace

import pytest

from dht.contest import Contest
from dht.judgement.docket import Case, open_cases, record_id
from dht.judgement.outcomes import State
from dht.judgement.proceedings import rule
from dht.judgement.timeline import Act, Timeline, phase_of
from dht.reputation import Conviction, OpenFail, Rejection
from tests.dht.judgement.town import (
    ACCUSED,
    ACCUSER,
    ANCHORS,
    DOWN,
    ONE,
    PEERS,
    RULES,
    SHRUG,
    UNIT_S,
    UP,
    claim_of,
    court_of,
    play,
)

CLAIM = claim_of()
CLOCK = Timeline.of(CLAIM.t, RULES)
COURT = court_of()


def at_levels(*opinions):
    """Everybody finds the same at a level."""
    return lambda member, claim, level: opinions[level - 1]


def ruled(says, until_units=30, **changes):
    town = play([CLAIM], says, **{"court": COURT, **changes})
    (ruling,) = town.outcomes(CLAIM.t + until_units * UNIT_S).rulings
    return ruling


def test_whoever_does_not_deny_a_claim_is_convicted_and_may_still_appeal_for_a_while():
    town = play([CLAIM], at_levels(UP, UP, UP), court=COURT, denies=False, appeals=False)
    before, after, over = (town.outcomes(CLAIM.t + units * UNIT_S) for units in (2.9, 3, 10))
    assert before.convictions == ()
    assert before.undecided == (CLAIM.hash,)
    assert after.convictions == over.convictions == (Conviction(ACCUSED, CLAIM.epoch),)
    assert [outcome.rulings[0].is_final for outcome in (after, over)] == [False, True]
    assert town.verdicts == [], "nobody had to work for that"
    assert over.open_fails == (OpenFail(ACCUSER, ACCUSED),)


def test_guilt_that_was_found_counts_while_it_is_appealed_against_and_innocence_ends_it():
    town = play([CLAIM], at_levels(UP, DOWN, DOWN), court=COURT)
    for units, convicted in ((7.9, False), (8, True), (9.5, True), (15.9, True), (16, False), (30, False)):
        outcomes = town.outcomes(CLAIM.t + units * UNIT_S)
        assert bool(outcomes.convictions) is convicted, units
        assert (CLAIM.hash in outcomes.undecided) is (units < 24)


def test_what_level_1_has_found_stands_where_nobody_above_it_can_tell():
    for found, state in ((UP, State.UPHELD), (DOWN, State.REJECTED)):
        for above in ((SHRUG, SHRUG), (None, None), (SHRUG, None)):
            ruling = ruled(at_levels(found, *above))
            assert (ruling.state, ruling.is_final) == (state, True)
            assert f"Of 7 holders of the blocks {7 if found is UP else 0} found the work false" in ruling.why


def test_the_word_of_three_holders_does_not_stand_alone():
    court = court_of(PEERS[:5])  # Accused and accuser among them.
    for found in (UP, DOWN):
        says = at_levels(found, SHRUG, SHRUG)
        town = play([CLAIM], says, court=court)
        (ruling,) = town.outcomes(CLAIM.t + 30 * UNIT_S).rulings
        assert len(ruling.committee(1)) == 3
        assert ruling.state is State.UNRESOLVED


def test_against_a_judgement_by_default_holders_are_asked_and_those_who_cannot_tell_acquit_nobody():
    holders = {*PEERS[:20]}
    court = court_of(PEERS[:20])
    town = play([CLAIM], lambda member, claim, level: UP if member in holders else SHRUG, court=court, denies=False)
    (ruling,) = town.outcomes(CLAIM.t + 30 * UNIT_S).rulings
    assert (ruling.state, ruling.committee(1)) == (State.UPHELD, ())
    assert {*ruling.committee(2)} <= holders
    nobody = ruled(at_levels(None, SHRUG, SHRUG), denies=False)
    assert nobody.state is State.UNRESOLVED, "where no holder can tell, silence convicts nobody who speaks up later"


def test_an_anchor_denies_a_false_claim_for_who_is_away_and_a_friend_of_the_accused_cannot():
    for contester, state in ((ANCHORS[0], State.PENDING), (PEERS[9], State.UPHELD), (ACCUSER, State.UPHELD)):
        denial = Contest(contester, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t + 1)
        ruling = rule(Case(CLAIM, (denial,), ()), COURT.bench(Case(CLAIM, (), ()), frozenset()), CLAIM.t + 4 * UNIT_S)
        assert ruling.state is state
        assert len(ruling.committee(1)) == (7 if state is State.PENDING else 0)


def test_who_was_away_for_some_hours_appeals_against_the_default_judgement():
    ruling = ruled(at_levels(None, DOWN, None), denies=False)
    assert (ruling.state, ruling.level, ruling.committee(1)) == (State.REJECTED, 3, ())
    assert len(ruling.committee(2)) == 15


@pytest.mark.parametrize("first_seen_units", [2.99, 3.0])
def test_a_denial_that_is_dated_back_is_seen_too_late(first_seen_units):
    denial = Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t + 1)
    case = Case(CLAIM, frozenset([denial]))
    seen = {record_id(denial): CLAIM.t + first_seen_units * UNIT_S, CLAIM.hash: float(CLAIM.t)}
    ruling = rule(case, court_of(first_seen_s=seen).bench(case, frozenset()), CLAIM.t + 5 * UNIT_S)
    assert ruling.state is (State.PENDING if first_seen_units < 3 else State.UPHELD)


@pytest.mark.parametrize(
    "denial",
    [
        Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t + 2 * UNIT_S),  # late
        Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t - 1),  # before the claim
        Contest(PEERS[5], CLAIM.epoch, CLAIM.hash, ACCUSER, 1, CLAIM.t + 1),  # somebody else's
        Contest(ACCUSED, CLAIM.epoch, CLAIM.hash, PEERS[5], 1, CLAIM.t + 1),  # of another accuser's
        Contest(ACCUSED, CLAIM.epoch + 1, CLAIM.hash, ACCUSER, 1, CLAIM.t + 1),  # of another epoch
        Contest(ACCUSED, CLAIM.epoch, bytes(32), ACCUSER, 1, CLAIM.t + 1),  # of another claim
    ],
)
def test_no_other_denial_helps(denial):
    (case,) = open_cases([CLAIM], [denial], [])
    assert rule(case, COURT.bench(case, frozenset()), CLAIM.t + 5 * UNIT_S).state is State.UPHELD


@pytest.mark.parametrize(
    ("opinions", "appeals", "state", "level"),
    [
        ((UP, None, None), False, State.UPHELD, 1),
        ((DOWN, None, None), False, State.REJECTED, 1),
        ((UP, DOWN, None), True, State.REJECTED, 3),  # the accuser stakes its bond, and no anchor speaks
        ((DOWN, UP, DOWN), True, State.REJECTED, 3),
        ((DOWN, UP, UP), True, State.UPHELD, 3),
        ((SHRUG, UP, None), False, State.UPHELD, 2),
        ((None, DOWN, None), False, State.REJECTED, 2),
        ((SHRUG, SHRUG, DOWN), False, State.REJECTED, 3),
        ((SHRUG, SHRUG, SHRUG), False, State.UNRESOLVED, 3),
        ((None, None, None), False, State.UNRESOLVED, 3),
    ],
)
def test_levels_follow_each_other_as_far_as_they_must(opinions, appeals, state, level):
    ruling = ruled(at_levels(*opinions), appeals=appeals)
    assert (ruling.state, ruling.level, ruling.is_final) == (state, level, True)


def test_inconclusive_claims_harm_nobody():
    outcomes = play([CLAIM], at_levels(SHRUG, SHRUG, SHRUG), court=COURT).outcomes()
    assert (outcomes.convictions, outcomes.rejections) == ((), ())


def test_a_false_claim_is_held_against_its_author_and_not_against_the_accused():
    outcomes = play([CLAIM], at_levels(DOWN, DOWN, DOWN), court=COURT).outcomes()
    assert (outcomes.convictions, outcomes.open_fails) == ((), ())
    assert outcomes.rejections == (Rejection(ACCUSER, CLAIM.epoch),)


def test_a_close_second_verdict_goes_to_the_anchors_unasked():
    turns = itertools.cycle([UP, UP, DOWN])

    def says(member, claim, level):
        return SHRUG if level == 1 else DOWN if level == 3 else next(turns)

    ruling = ruled(says, appeals=False)
    assert ruling.tallies[1].is_close
    assert (ruling.level, ruling.state, ruling.backed_by) == (3, State.REJECTED, "")
    assert ruling.committee(3) == tuple(sorted(ANCHORS))


def test_a_clear_second_verdict_goes_to_the_anchors_only_for_a_bond():
    says = at_levels(SHRUG, UP, DOWN)
    assert ruled(says).backed_by == ACCUSED
    (case,) = play([CLAIM], says, court=COURT).cases
    bench = replace(COURT.bench(case, frozenset()), bondless=frozenset({ACCUSED}))
    over = rule(case, bench, CLAIM.t + 30 * UNIT_S)
    assert (over.state, over.level) == (State.UPHELD, 2)
    assert rule(case, bench, CLAIM.t + 16 * UNIT_S).loser == ""


def test_anchors_that_are_parties_do_not_judge():
    court = court_of(anchors=[ACCUSED, ACCUSER, *ANCHORS])
    assert ruled(at_levels(None, None, DOWN), court=court).committee(3) == tuple(sorted(ANCHORS))


def test_where_few_hold_the_blocks_all_others_judge_and_where_fewer_do_nobody():
    nine = court_of(PEERS[:1] + PEERS[2:10])
    assert set(ruled(at_levels(UP, UP, UP), court=nine).committee(1)) == set(PEERS[2:10])
    ten = court_of(PEERS[:1] + PEERS[2:11])
    assert len(ruled(at_levels(UP, UP, UP), court=ten).committee(1)) == 7
    three = court_of(PEERS[:1] + PEERS[2:4])
    upheld = ruled(at_levels(UP, UP, UP), court=three, appeals=False)
    assert (upheld.state, upheld.level, upheld.committee(1)) == (State.UPHELD, 1, upheld.committee(1))
    two = play([CLAIM], at_levels(UP, UP, UP), court=court_of(PEERS[:1] + PEERS[2:3]), denies=False).outcomes()
    assert (two.rulings[0].state, two.convictions, two.undecided) == (State.LOCAL, (), ())
    assert two.open_fails == (OpenFail(ACCUSER, ACCUSED),), "who claimed it need not vouch for the accused"


def test_names_without_credibility_take_no_seat_and_make_no_committee_smaller():
    """Of 9 holders that are credible all judge, however many others hold the blocks by receipts of each other."""
    credible, names = (ACCUSED, *PEERS[2:10]), PEERS[50:80]
    court = court_of((*credible, *names), dict.fromkeys(credible, ONE))
    assert set(ruled(at_levels(UP, None, None), court=court).committee(1)) == set(credible) - {ACCUSED}


def test_while_nobody_is_credible_the_anchors_judge():
    ruling = ruled(at_levels(UP, UP, UP), court=court_of(credibility={}))
    assert (ruling.committee(1), ruling.committee(2), ruling.level) == ((), (), 3)
    assert ruling.state is State.UPHELD


def test_nobody_with_less_than_three_fifths_of_the_highest_credibility_judges():
    least = ONE * 3 // 5 + 1
    weights = dict.fromkeys(PEERS, least - 1) | dict.fromkeys(PEERS[20:40], ONE) | dict.fromkeys(PEERS[40:50], least)
    heeded = set(PEERS[20:50])
    ruling = ruled(at_levels(SHRUG, UP, UP), court=court_of(credibility=weights))
    assert set(ruling.committee(1)) <= heeded
    assert set(ruling.committee(2)) <= heeded
    few = court_of((*PEERS[:20], *PEERS[40:46]), weights)
    assert set(ruled(at_levels(UP, None, None), court=few).committee(1)) == set(PEERS[40:46])
    silent = ruled(at_levels(UP, None, None), court=few, denies=False)
    assert silent.tallies[0] is not None, "no more does silence prove anything to an accuser who is not heeded"


def test_an_appeal_against_silence_is_judged_by_holders_with_three_fifths_of_the_highest_credibility():
    weights = dict.fromkeys(PEERS, ONE) | dict.fromkeys(PEERS[10:20], ONE // 2)
    ruling = ruled(at_levels(UP, UP, UP), court=court_of(PEERS[:20], weights), denies=False)
    assert (ruling.tallies[0], set(ruling.committee(2))) == (None, set(PEERS[2:10]))


def test_a_ruling_says_why_in_words():
    ruling = ruled(at_levels(UP, None, None), appeals=False)
    assert ruling.why == "Of 7 holders of the blocks 7 found the work false, 0 right, 0 could not tell."
    assert ruling.settled_s == CLOCK.settles_s(phase_of(2, Act.APPEAL))
