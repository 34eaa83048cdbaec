"""A server that has earned trust signs for names of its own, so that these hold blocks and are credible.

Of what comes to a server it can pass a tenth on to each of some names, and they to each other. Credibility grows slower
than trust, so each of ten has two fifths of what its lender has; with less than three fifths of the highest nobody
judges.
"""

import itertools
from collections import Counter

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
    UNIT_S,
    UP,
    claim_of,
    play,
)
from tests.dht.samples import receipt

LENDER, ACCOMPLICE, NOBODY = PEERS[60], PEERS[61], PEERS[150]
SEVEN, TWENTY_NINE = (2, 4), (8, 20)
"""Honest peers beside the accused: so many hold the same blocks, so many the next ones."""
NONE_DECIDES = [(1, DOWN), (3, SHRUG)]
"""Anchors, and what they say: no level decides by the word of one, and those without weights cannot tell."""
UNITS = 8
"""What each has worked for the anchors."""


def names_of(num_names):
    return PEERS[70 : 70 + num_names]


def worked(honest, names, anchors, *, rich=1, is_ring=False, lenders=(LENDER,)):
    """The accused, the lender and some honest peers hold the first blocks, others the next, and the names the first."""
    book = Workbook()
    num_beside, num_others = honest
    first = [(peer, 0) for peer in (ACCUSED, *lenders, *PEERS[2 : 2 + num_beside])]
    for peer, start in first + [(each, 4) for each in PEERS[20 : 20 + num_others]]:
        work = 4096 * UNITS * (rich if peer in lenders else 1) // len(anchors)
        for anchor in anchors:
            span = {"start": start, "end": start + 4, "epoch": EPOCH - 1}
            book.add(receipt(BY_ID[peer], BY_ID[anchor], **span, amount=64, work=work))
    ring = itertools.permutations(names, 2) if is_ring else ()
    for name, signer in (*itertools.product(names, lenders), *ring):
        book.add(receipt(BY_ID[name], BY_ID[signer], epoch=EPOCH - 1, amount=64, work=4096 * 60))
    return book


def scores_of(book, anchors):
    return score(evidence_of(book, Proofs(), Judged(), EPOCH - 1), anchors, EPOCH - 1, DEFAULT_SCORE_RULES)


def false_claims(
    honest, *, accuser=NOBODY, num_names=10, num_anchors=1, anchors_say=DOWN, denies=True, draws=6, **lent
):  # fmt: skip
    """Let lenders and their names judge what they accuse the innocent of; count what becomes of it in the end.

    Returns:
        States and how many claims ended so; for how many guilt counted at some time.
    """
    anchors, names = ANCHORS[:num_anchors], names_of(num_names)
    book = worked(honest, names, anchors, **lent)
    standings = scores_of(book, anchors).standings
    credibility = {peer: standing.credibility for peer, standing in standings.items()}
    court = Court(RULES, Holdings(book.spans()), {EPOCH: credibility}, anchors)
    lying = {*lent.get("lenders", (LENDER,)), *names}

    def says(member, claim, level):
        return UP if member in lying else anchors_say if member in anchors else DOWN

    claims = [claim_of(accuser, lane=lane) for lane in range(draws)]
    towns = [play([claim], says, court=court, denies=denies) for claim in claims]
    states = [
        [town.outcomes(town.claims[0].t + units * UNIT_S + 1).rulings[0].state for units in range(27)]
        for town in towns
    ]  # fmt: skip
    return Counter(each[-1] for each in states), sum(State.UPHELD in each for each in states)


ALL_REJECTED = ({State.REJECTED: 6}, 0)


@pytest.mark.parametrize("honest", [SEVEN, TWENTY_NINE])
@pytest.mark.parametrize("is_ring", [False, True])
@pytest.mark.parametrize("num_names", [9, 60])
@pytest.mark.parametrize(("num_anchors", "anchors_say"), NONE_DECIDES)
def test_borrowed_votes_convict_nobody_for_a_moment(honest, num_anchors, anchors_say, is_ring, num_names):
    lent = {"num_names": num_names, "is_ring": is_ring}
    assert false_claims(honest, num_anchors=num_anchors, anchors_say=anchors_say, **lent) == ALL_REJECTED


@pytest.mark.parametrize("honest", [SEVEN, TWENTY_NINE])
@pytest.mark.parametrize(("num_anchors", "anchors_say"), NONE_DECIDES)
def test_silence_proves_nothing_to_a_name_that_borrows(honest, num_anchors, anchors_say):
    """Who is asleep is not convicted by default, though many names hold its blocks."""
    lent = {"accuser": names_of(1)[0], "denies": False, "is_ring": True}
    assert false_claims(honest, num_anchors=num_anchors, anchors_say=anchors_say, **lent) == ALL_REJECTED


@pytest.mark.parametrize(("num_anchors", "anchors_say"), NONE_DECIDES)
def test_nor_do_those_to_whom_two_servers_lend(num_anchors, anchors_say):
    lent = {"lenders": (LENDER, ACCOMPLICE), "is_ring": True}
    for honest in (SEVEN, TWENTY_NINE):
        assert false_claims(honest, num_anchors=num_anchors, anchors_say=anchors_say, **lent) == ALL_REJECTED


def test_anchors_that_have_the_weights_let_no_borrowed_vote_convict():
    assert false_claims(SEVEN, num_anchors=3, is_ring=True)[0] == {State.REJECTED: 6}


@pytest.mark.parametrize("num_names", [5, 9, 10, 11, 20, 60])
@pytest.mark.parametrize("rich", [1, 2, 3])
def test_a_name_borrows_an_eighth_of_its_lenders_flow_at_most_and_all_together_one_and_a_quarter(num_names, rich):
    for honest, is_ring in itertools.product((SEVEN, TWENTY_NINE), (False, True)):
        names = names_of(num_names)
        scores = scores_of(worked(honest, names, ANCHORS[:1], rich=rich, is_ring=is_ring), ANCHORS[:1])
        own, borrowed = scores.standing(LENDER).flow, [scores.standing(name).flow for name in names]
        assert 0 < 8 * max(borrowed) < own
        assert 4 * sum(borrowed) < 5.2 * own


@pytest.mark.parametrize("rich", [2, 3])
def test_nor_do_those_of_one_who_has_three_times_the_typical_flow(rich):
    assert false_claims(TWENTY_NINE, rich=rich, is_ring=True) == ALL_REJECTED


def test_names_of_one_who_has_all_that_an_anchor_gives_to_anybody_judge_and_convict_nobody_for_good():
    """Open: among 29 it has 3.3 times the typical flow, and guilt that its names have found counts for a while."""
    found, num_upheld = false_claims(TWENTY_NINE, rich=9, is_ring=True, draws=20)
    assert not found[State.UPHELD]
    assert 0 < num_upheld < 20


def test_names_to_whom_three_servers_of_nine_lend_convict_where_no_anchor_can_decide():
    """Open."""
    lenders = (LENDER, ACCOMPLICE, PEERS[62])
    assert false_claims((1, 4), lenders=lenders, is_ring=True)[0][State.UPHELD]
    assert not false_claims((1, 4), lenders=lenders, num_names=0)[0][State.UPHELD]
