"""All cases together: what earlier ones mean for later ones, and that nobody's order of reading matters."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.contest import Contest
from dht.judgement.docket import Case, open_cases
from dht.judgement.judge import MEMORY_EPOCHS, judge
from dht.judgement.outcomes import State
from dht.reputation import Conviction
from tests.dht.judgement.town import (
    ACCUSED,
    ACCUSER,
    DOWN,
    EPOCH,
    PEERS,
    RULES,
    SHRUG,
    UNIT_S,
    UP,
    Town,
    claim_of,
    court_of,
    play,
)

COURT = court_of(PEERS[:40], dict.fromkeys(PEERS[:40], 2**40), PEERS[:3])


def _busy() -> Town:
    """A town with claims of every outcome, two for one chunk, and one that is denied by nobody."""
    claims = [
        claim_of(PEERS[3], PEERS[10]),
        claim_of(PEERS[4], PEERS[10]),  # the same chunk
        claim_of(PEERS[3], PEERS[11], number=1, lane=8),
        claim_of(PEERS[5], PEERS[12], lane=9, t=RULES.start_of(EPOCH) + 5000),
        claim_of(PEERS[5], PEERS[13], epoch=EPOCH + 1),
    ]
    guilty = {PEERS[10]: UP, PEERS[11]: DOWN, PEERS[12]: SHRUG, PEERS[13]: UP}
    return play(claims, lambda _, claim, level: guilty[claim.accused], court=COURT, appeals=True)


BUSY = _busy()


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_neither_the_order_nor_the_number_of_copies_of_records_matters(seed, units):
    chance = random.Random(seed)

    def mixed(records):
        return chance.sample([*records, *chance.choices(records, k=5)], k=len(records) + 5)

    cases = open_cases(mixed(BUSY.claims), mixed(BUSY.contests), mixed(BUSY.verdicts))
    now_s = BUSY.claims[0].t + units * UNIT_S
    mirrored = judge(cases, COURT, now_s)
    assert mirrored == BUSY.outcomes(now_s)


def test_a_chunk_convicts_once_whoever_claims_it():
    outcomes = BUSY.outcomes()
    assert outcomes.convictions == tuple(sorted([Conviction(PEERS[10], EPOCH), Conviction(PEERS[13], EPOCH + 1)]))
    states = [ruling.state for ruling in outcomes.rulings]
    assert sorted(states, key=str) == [State.REJECTED, State.UNRESOLVED, State.UPHELD, State.UPHELD, State.UPHELD]
    assert len(outcomes.open_fails) == 4


def test_a_false_claim_on_a_chunk_does_not_shield_it_from_a_true_one():
    shield = claim_of(PEERS[3], evidence=b"n" * 32)
    honest = claim_of(PEERS[4], t=shield.t + 1)
    town = play([shield, honest], lambda _, claim, level: DOWN if claim == shield else UP, court=COURT)
    outcomes = town.outcomes()
    assert [ruling.state for ruling in outcomes.rulings] == [State.REJECTED, State.UPHELD]
    assert outcomes.convictions == (Conviction(ACCUSED, EPOCH),)


def test_who_claims_the_same_again_is_not_heard_again():
    claims = [claim_of(PEERS[3], number=number, t=claim_of().t + number) for number in range(3)]
    outcomes = play(claims, lambda *_: DOWN, court=COURT).outcomes()
    assert [ruling.state for ruling in outcomes.rulings] == [State.REJECTED, State.IGNORED, State.IGNORED]


def test_two_claims_in_one_place_are_held_against_their_author():
    first = claim_of(PEERS[3])
    second = claim_of(PEERS[3], lane=8, t=first.t + 5)
    outcomes = play([second, first], lambda *_: UP, court=COURT).outcomes()
    assert [ruling.state for ruling in outcomes.rulings] == [State.UPHELD, State.REJECTED]
    back = replace(second, t=first.t - 5)
    seen = {back.hash: float(first.t + 5000), first.hash: float(first.t)}
    watched = replace(COURT, first_seen_s=seen)
    outcomes = play([back, first], lambda *_: UP, court=watched).outcomes()
    assert [ruling.state for ruling in outcomes.rulings] == [State.IGNORED, State.UPHELD]


def test_a_claim_that_is_dated_back_past_the_window_of_its_denial_is_ignored_by_whoever_watched():
    claim = claim_of()
    for seen_s, state in ((claim.t + UNIT_S - 1, State.UPHELD), (claim.t + UNIT_S, State.IGNORED)):
        court = replace(COURT, first_seen_s={claim.hash: float(seen_s)})
        (ruling,) = judge([Case(claim)], court, claim.t + 30 * UNIT_S).rulings
        assert ruling.state is state


def test_a_slanderer_is_silenced_after_three_and_heard_again_when_that_is_forgotten():
    def slander(epoch, number):
        return claim_of(ACCUSER, PEERS[10 + number], epoch=epoch, number=number, lane=number)

    epochs = (EPOCH, EPOCH + 1, EPOCH + 2, EPOCH + 9, EPOCH + MEMORY_EPOCHS + 1)
    claims = [slander(epoch, number) for epoch in epochs for number in range(3)]
    outcomes = play(claims, lambda *_: DOWN, court=COURT, appeals=False).outcomes()
    states = [ruling.state for ruling in outcomes.rulings]
    assert states[:3] == [State.REJECTED] * 3
    assert states[3:12] == [State.IGNORED] * 9
    assert states[12:] == [State.REJECTED] * 3
    assert outcomes.convictions == ()


def test_a_slanderer_that_appeals_is_heard_for_one_epoch_more():
    claims = [
        claim_of(ACCUSER, PEERS[10 + number], epoch=EPOCH + later, number=number, lane=number)
        for later in range(4)
        for number in range(3)
    ]
    states = [ruling.state for ruling in play(claims, lambda *_: DOWN, court=COURT).outcomes().rulings]
    assert states == [State.REJECTED] * 6 + [State.IGNORED] * 6


def test_an_accuser_with_two_false_claims_is_still_heard():
    claims = [
        claim_of(ACCUSER, PEERS[10], number=0),
        claim_of(ACCUSER, PEERS[11], number=1),
        claim_of(ACCUSER, PEERS[12], epoch=EPOCH + 2),
    ]
    says = {PEERS[10]: DOWN, PEERS[11]: DOWN, PEERS[12]: UP}
    outcomes = play(claims, lambda _, claim, level: says[claim.accused], court=COURT, appeals=False).outcomes()
    assert outcomes.rulings[-1].state is State.UPHELD


def test_a_bond_is_staked_once_and_lost_for_a_while():
    liar = PEERS[10]
    claims = [
        claim_of(PEERS[3], liar, lane=1),
        claim_of(PEERS[4], liar, lane=2),  # while the bond is staked
        claim_of(PEERS[3], liar, lane=3, epoch=EPOCH + 9),  # it is lost
        claim_of(PEERS[3], liar, lane=4, epoch=EPOCH + MEMORY_EPOCHS + 1),  # that is forgotten
    ]
    outcomes = play(claims, lambda _, claim, level: SHRUG if level == 1 else UP, court=COURT).outcomes()
    assert [ruling.backed_by for ruling in outcomes.rulings] == [liar, "", "", liar]
    assert [ruling.level for ruling in outcomes.rulings] == [3, 2, 2, 3]
    won = play(claims[:3], lambda _, claim, level: (SHRUG, UP, DOWN)[level - 1], court=COURT).outcomes()
    assert [ruling.backed_by for ruling in won.rulings] == [liar, "", liar]


def test_what_was_settled_stands_whatever_turns_up_later():
    claim = claim_of()
    case = Case(claim)
    before = judge([case], COURT, claim.t + 10 * UNIT_S)
    assert before.rulings[0].is_final
    late = replace(case, contests=frozenset([Contest(ACCUSED, EPOCH, claim.hash, ACCUSER, 1, claim.t + 1)]))
    again = judge([late], COURT, claim.t + 30 * UNIT_S, before.settled)
    assert again.convictions == before.convictions
    assert judge([late], COURT, claim.t + 30 * UNIT_S).convictions == (), "who knows neither cannot tell"
