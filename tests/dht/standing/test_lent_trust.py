"""A server that has earned trust signs for names of its own, so that these hold blocks, are credible, and judge.

Of what comes to a server it can pass a tenth on to each of some names. Credibility grows slower than trust, so they
have a fifth of the highest each, and are drawn. This is open (docs/trust.md); here stands how far it goes.
"""

import pytest

from dht.judgement.holdings import Holdings
from dht.judgement.judge import Court
from dht.judgement.outcomes import State
from dht.reputation import DEFAULT_SCORE_RULES, score
from dht.standing.gathering import evidence_of
from dht.standing.proofs import Judged, Proofs
from dht.standing.workbook import Workbook
from tests.dht.judgement.town import (
    ACCUSED,
    ANCHORS,
    BY_ID,
    DOWN,
    EPOCH,
    PEERS,
    RULES,
    SHRUG,
    UP,
    claim_of,
    play,
)
from tests.dht.samples import receipt

LENDER, NOBODY = PEERS[60], PEERS[150]
STATES = (State.UPHELD, State.UNRESOLVED, State.REJECTED)


def worked(num_beside, num_others, names, anchors):
    """The accused, the lender and ``num_beside`` hold the first blocks, others the next; all have earned the same."""
    book = Workbook()
    holders = [(each, 0) for each in (ACCUSED, LENDER, *PEERS[2 : 2 + num_beside])]
    for peer, start in holders + [(each, 4) for each in PEERS[20 : 20 + num_others]]:
        for anchor in anchors:
            span = {"start": start, "end": start + 4, "epoch": EPOCH - 1}
            book.add(receipt(BY_ID[peer], BY_ID[anchor], **span, amount=64, work=4096 * 20 // len(anchors)))
    for name in names:
        book.add(receipt(BY_ID[name], BY_ID[LENDER], epoch=EPOCH - 1, amount=64, work=4096 * 60))
    return book


def false_claims(num_beside, num_others, *, num_names=9, num_anchors=1, anchors_say=DOWN, draws=10):
    """Let the lender and its names judge false claims; count what becomes of them: upheld, unresolved, rejected."""
    anchors, names = ANCHORS[:num_anchors], PEERS[70 : 70 + num_names]
    book = worked(num_beside, num_others, names, anchors)
    scores = score(evidence_of(book, Proofs(), Judged(), EPOCH - 1), anchors, EPOCH - 1, DEFAULT_SCORE_RULES)
    credibility = {peer: standing.credibility for peer, standing in scores.standings.items()}
    court = Court(RULES, Holdings(book.spans()), {EPOCH: credibility}, anchors)

    def says(member, claim, level):
        return UP if member in (LENDER, *names) else anchors_say if member in anchors else DOWN

    towns = [play([claim_of(NOBODY, lane=lane)], says, court=court) for lane in range(draws)]
    found = [town.outcomes().rulings[0].state for town in towns]
    return tuple(found.count(state) for state in STATES)


def test_anchors_that_have_the_weights_let_no_borrowed_vote_convict():
    assert false_claims(2, 4, num_anchors=3) == (0, 0, 10)


def test_among_thirty_honest_peers_borrowed_votes_are_too_few():
    assert false_claims(8, 20, anchors_say=SHRUG) == (0, 0, 10)


def test_a_lender_weighs_at_most_four_and_a_half_times_as_much_as_it_has_earned():
    """Borrowed trust adds up to 0.7 of the lender's; where little is, credibility is four times as much."""
    for num_names in (9, 20, 60):
        names = PEERS[70 : 70 + num_names]
        book = worked(2, 20, names, ANCHORS[:1])
        standings = score(
            evidence_of(book, Proofs(), Judged(), EPOCH - 1), ANCHORS[:1], EPOCH - 1, DEFAULT_SCORE_RULES
        ).standings
        own = standings[LENDER].credibility
        assert 2 * own < own + sum(standings[name].credibility for name in names) < 4.5 * own


@pytest.mark.parametrize(("num_anchors", "anchors_say"), [(1, DOWN), (3, SHRUG)])
def test_among_seven_honest_peers_nine_borrowed_votes_convict_where_no_anchor_can_decide(num_anchors, anchors_say):
    """Open. One anchor decides nothing, as no level does by the word of one, and those without weights cannot tell."""
    assert false_claims(2, 4, num_anchors=num_anchors, anchors_say=anchors_say) == (10, 0, 0)
    assert false_claims(2, 4, num_names=0, num_anchors=num_anchors, anchors_say=anchors_say) == (0, 0, 10)
