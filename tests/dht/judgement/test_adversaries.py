"""Attackers of the judgement, with honest people against them: how often the guilty go free and the honest do not."""

import pytest

from dht.judgement.outcomes import State
from tests.dht.judgement.town import DOWN, ONE, PEERS, UP, claim_of, court_of, play

NUM_PEOPLE, NUM_CLAIMS = 40, 36
PEOPLE = PEERS[:NUM_PEOPLE]
HONEST_ANCHORS = PEERS[100:105]


def bribed(share: float) -> set[str]:
    return set(PEOPLE[-int(NUM_PEOPLE * share) :])


def tried(liars: set[str], *, is_true: bool, credibility=None, anchors=HONEST_ANCHORS, appeals=True, lanes=0):
    """Three claims of each of some accusers in one epoch, judged by liars, and by honest people who see what is so."""
    truth, lie = (UP, DOWN) if is_true else (DOWN, UP)
    claims = [
        claim_of(PEERS[105 + number // 3], PEOPLE[number % 20], number=number % 3, lane=lanes + number)
        for number in range(NUM_CLAIMS)
    ]
    weights = credibility or dict.fromkeys(PEOPLE, ONE)
    court = court_of(PEOPLE, weights, anchors, epochs=range(80_000 - 1, 80_002))
    town = play(claims, lambda member, *_: lie if member in liars else truth, court=court, appeals=appeals)
    states = [ruling.state for ruling in town.outcomes().rulings]
    return states.count(State.UPHELD) / NUM_CLAIMS, states.count(State.REJECTED) / NUM_CLAIMS


@pytest.mark.parametrize("is_true", [True, False])
def test_two_bribed_jurors_in_five_change_nothing_where_people_appeal(is_true):
    upheld, rejected = tried(bribed(0.4), is_true=is_true)
    assert (upheld, rejected) == ((1, 0) if is_true else (0, 1))


@pytest.mark.full
@pytest.mark.parametrize("num_bad_anchors", [0, 2])
@pytest.mark.parametrize("is_true", [True, False])
def test_over_many_draws_at_most_one_honest_in_a_hundred_is_convicted(is_true, num_bad_anchors):
    liars, rounds = bribed(0.4) | set(HONEST_ANCHORS[:num_bad_anchors]), 20
    shares = [tried(liars, is_true=is_true, lanes=1000 * each) for each in range(rounds)]
    upheld, rejected = (sum(each) / rounds for each in zip(*shares, strict=True))
    print(
        f"{rounds * NUM_CLAIMS} claims, true: {is_true}, bad anchors {num_bad_anchors}: {upheld=:.4f} {rejected=:.4f}"
    )
    assert (rejected if is_true else upheld) <= 0.01


def test_without_appeals_two_bribed_jurors_in_five_capture_some_committees():
    upheld, _ = tried(bribed(0.4), is_true=False, appeals=False)
    assert 0 < upheld < 0.25


def test_bribed_jurors_that_are_not_credible_capture_none():
    liars = bribed(0.4)
    weights = {peer: ONE // 8 if peer in liars else ONE for peer in PEOPLE}
    assert tried(liars, is_true=False, credibility=weights, appeals=False)[0] <= 0.02


def test_two_bad_anchors_of_five_change_nothing_and_three_decide():
    liars = bribed(0.4)
    assert tried(liars | set(HONEST_ANCHORS[:2]), is_true=False) == (0, 1)
    upheld, _ = tried(liars | set(HONEST_ANCHORS[:3]), is_true=False)
    assert upheld > 0.3, "whoever has the majority of the anchors convicts: that is what they are trusted with"


def test_a_whitewasher_that_never_answers_is_convicted_without_anybodys_work():
    claims = [claim_of(PEERS[105 + number], PEOPLE[number], lane=number) for number in range(5)]
    town = play(claims, lambda *_: DOWN, court=court_of(PEOPLE), denies=False, appeals=False)
    assert [ruling.state for ruling in town.outcomes().rulings] == [State.UPHELD] * 5
    assert town.verdicts == []
