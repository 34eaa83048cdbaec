"""What duplicates are worth to a newcomer whose blocks have all the established servers that they need.

Its only work is a twentieth of what an anchor's client consumes, run a second time: as receipts and passes have it.
"""

import pytest

from dht.reputation import Evidence, OpenFail, Pass, Work, score
from dht.standing.ranks import Rank, rank_of

ANCHOR, NEWCOMER = "anchor", "newcomer"
ESTABLISHED = ("one", "two", "three")
CONSUMED = 4096 * 60
"""Block-tokens that the anchor's client is served in an epoch."""
SHADOW = 20
"""One in so many of them is duplicated."""


def rank(*, epochs=1, shadow=SHADOW, blocks_of=1, has_passes=False, open_fails=()):
    """Rank the newcomer after some epochs; it holds one in ``blocks_of`` of the model's blocks."""
    served = [Work(ANCHOR, each, epoch, CONSUMED // 3) for epoch in range(epochs) for each in ESTABLISHED]
    duplicated = [Work(ANCHOR, NEWCOMER, epoch, CONSUMED // shadow // blocks_of) for epoch in range(epochs) if shadow]
    passes = [Pass(ANCHOR, NEWCOMER, epoch) for epoch in range(epochs) if has_passes]
    evidence = Evidence(works=(*served, *duplicated), passes=tuple(passes), open_fails=tuple(open_fails))
    scores = score(evidence, (ANCHOR,), epochs)
    assert rank_of(scores, ESTABLISHED[0]) is Rank.ESTABLISHED
    return rank_of(scores, NEWCOMER)


def test_without_shadow_traffic_it_is_a_newcomer_for_ever():
    assert rank(epochs=20, shadow=0) is Rank.NEWCOMER


@pytest.mark.parametrize("has_passes", [False, True])
def test_the_work_of_one_epoch_makes_it_established_with_passes_or_without(has_passes):
    assert rank(has_passes=has_passes) is Rank.ESTABLISHED


def test_where_it_holds_few_of_the_blocks_passes_make_up_for_the_little_work():
    assert rank(blocks_of=10) is Rank.NEWCOMER
    assert rank(blocks_of=10, has_passes=True) is Rank.ESTABLISHED


def test_who_was_found_false_in_a_duplicate_gets_nothing_from_it():
    assert rank(has_passes=True, open_fails=[OpenFail(ANCHOR, NEWCOMER)]) is Rank.NEWCOMER
