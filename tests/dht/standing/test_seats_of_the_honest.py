"""In a small swarm those who are honest keep their seats, and convict, though liars get several times their work.

Two ranges with four servers each, two liars in the first and one in the second, and two anchors, of which one has the
weights and verifies, as in ``tests/attacks/test_liars_are_out.py``. Canaries go round evenly, and only passes count, as
their consumers are new names; what an anchor's own client asks for goes to those who announce the most.
"""

import random

import pytest

from dht.judgement.holdings import Holdings
from dht.judgement.judge import Court
from dht.judgement.outcomes import State
from dht.judgement.proceedings import REACH
from dht.reputation import Evidence, OpenFail, Pass, Work, score
from tests.dht.judgement.town import ANCHORS, BY_ID, DOWN, EPOCH, PEERS, RULES, UP, claim_of, play
from tests.dht.samples import receipt

VERIFIER, FOUNDER = ANCHORS[:2]
LOW, HIGH = PEERS[:4], PEERS[4:8]
LIARS = {*LOW[2:], HIGH[3]}
HONEST = {*LOW, *HIGH} - LIARS
UNIT = 4096
NUM_EPOCHS = 8


def scores_by_epoch(*, canaries, units, skew, caught, seed):
    """Let epochs pass; yield the scores as of the end of each.

    Args:
        canaries: In an epoch; each takes one server of each range, in turn, and one in seven is lost.
        units: Of work that the founder's client has done by each range in an epoch.
        skew: How many times the work of an honest server a liar gets.
        caught: Share of a liar's canaries that fail.
        seed: Of all chances.
    """
    chance = random.Random(seed)
    works, passes, fails = [], set(), set()
    for epoch in range(EPOCH - NUM_EPOCHS, EPOCH):
        for number in range(canaries):
            for server in (LOW[number % 4], HIGH[number % 4]):
                if chance.random() < 1 / 7:
                    continue
                if server in LIARS and chance.random() < caught:
                    fails.add(OpenFail(VERIFIER, server))
                else:
                    passes.add(Pass(VERIFIER, server, epoch))
        for servers in (LOW, HIGH):
            weights = [skew if server in LIARS else 1 for server in servers]
            sessions = chance.choices(servers, weights, k=round(units * 8))
            works += [Work(FOUNDER, server, epoch, UNIT // 8) for server in sessions]
        evidence = Evidence(works=tuple(works), passes=tuple(passes), open_fails=tuple(fails))
        yield score(evidence, (VERIFIER, FOUNDER), epoch)


SWARMS = [
    {"canaries": 20, "units": 0, "skew": 1, "caught": 0.6},
    {"canaries": 20, "units": 0.5, "skew": 4, "caught": 0},
    {"canaries": 20, "units": 8, "skew": 4, "caught": 0},
    {"canaries": 20, "units": 8, "skew": 10, "caught": 0.1},
    {"canaries": 20, "units": 30, "skew": 4, "caught": 0},
]


@pytest.mark.parametrize("swarm", SWARMS)
def test_all_honest_servers_are_heeded_from_the_first_epoch_on(swarm):
    for seed in range(10):
        for scores in scores_by_epoch(**swarm, seed=seed):
            highest = max(standing.credibility for standing in scores.standings.values())
            assert min(scores.standing(peer).credibility for peer in HONEST) >= REACH * highest


def test_liars_have_several_times_the_flow_of_the_honest_in_some_of_these_swarms():
    *_, scores = scores_by_epoch(**SWARMS[1], seed=0)
    flows = {peer: scores.standing(peer).flow for peer in (*LOW, *HIGH)}
    assert max(flows[peer] for peer in LIARS) > 1.5 * min(flows[peer] for peer in HONEST)


@pytest.mark.parametrize("swarm", SWARMS)
@pytest.mark.parametrize("accused", sorted(LIARS))
@pytest.mark.parametrize("num_epochs", [1, 3, NUM_EPOCHS])
def test_liars_who_deny_appeal_and_vote_for_each_other_are_convicted(swarm, accused, num_epochs):
    scores = list(scores_by_epoch(**swarm, seed=0))[num_epochs - 1]
    spans = [
        receipt(BY_ID[peer], BY_ID[FOUNDER], start=start, end=start + 4, epoch=EPOCH - 1)
        for servers, start in ((LOW, 0), (HIGH, 4))
        for peer in servers
    ]
    credibility = {peer: standing.credibility for peer, standing in scores.standings.items()}
    court = Court(RULES, Holdings(spans), {EPOCH: credibility}, (VERIFIER, FOUNDER))
    start = 0 if accused in LOW else 4
    work = receipt(BY_ID[accused], BY_ID[FOUNDER], start=start, end=start + 4).to_body()

    def says(member, claim, level):
        return DOWN if member in LIARS else None if member == FOUNDER else UP

    town = play([claim_of(VERIFIER, accused, receipt=work)], says, court=court)
    assert town.outcomes().rulings[0].state is State.UPHELD
