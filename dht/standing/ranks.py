"""Say in a word where each peer stands: what routing, admission and people need to know of scores. Pure.

newcomer      has to prove itself        ended         has named a successor
established   is trusted with work       convicted     its work was found false, and that is not long enough ago
                                         equivocator   it signed two receipts that contradict each other

Whoever has done trusted work for a few epochs only, or of whom a conviction is left, is watched: audited more often.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from dht.reputation import ONE, Scores, Work

NEWCOMER_WEIGHT = Fraction(3, 4)
"""What a newcomer's score counts for where it takes live traffic: an established one at the same place is preferred."""


WATCHED_EPOCHS = 8
"""So long is watched who has begun to work for peers that are trusted."""


class Rank(StrEnum):
    """Where a peer stands."""

    NEWCOMER = "newcomer"
    ESTABLISHED = "established"
    CONVICTED = "convicted"
    EQUIVOCATOR = "equivocator"
    ENDED = "ended"


class Ranked(NamedTuple):
    """One peer's place."""

    rank: Rank
    weight: float  # of its work beside others', 0 to 1; 0: it gets none
    is_watched: bool = False  # it is audited more often than others


NEW = Ranked(Rank.NEWCOMER, float(NEWCOMER_WEIGHT), is_watched=True)
"""The place of those of whom nothing is known."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Everyone's place, as of one moment."""

    has_flow: bool  # whether anybody but the anchors is trusted: until then newcomers have to do the work
    ranked: Mapping[str, Ranked]  # by peer id; who is not in it is new

    def of(self, peer: str) -> Ranked:
        """Give a peer's place."""
        return self.ranked.get(peer, NEW)


def rank_of(scores: Scores, peer: str) -> Rank:
    """Say in a word where a peer stands."""
    standing = scores.standing(peer)
    if standing.is_equivocator:
        return Rank.EQUIVOCATOR
    if standing.is_dead:
        return Rank.ENDED
    if standing.is_newcomer:
        return Rank.NEWCOMER
    return Rank.ESTABLISHED if scores.weight(peer) else Rank.CONVICTED


def ranks_of(scores: Scores, works: Iterable[Work] = ()) -> Ranks:
    """Rank everyone who is named in what counts.

    Args:
        scores: Where everyone stands.
        works: What these were computed from: since when each has worked.
    """
    began = _began(scores, works)
    return Ranks(scores.has_flow, {peer: _ranked(scores, peer, began.get(peer)) for peer in scores.peers})


def _began(scores: Scores, works: Iterable[Work]) -> dict[str, int]:
    """Find the first epoch in which each peer has worked for somebody who is trusted: others sign for any past."""
    began: dict[str, int] = {}
    for consumer, provider, epoch, _ in works:
        if consumer != provider and (consumer in scores.anchors or scores.weight(consumer)):
            began[provider] = min(epoch, began.get(provider, epoch))
    return began


def _ranked(scores: Scores, peer: str, began: int | None) -> Ranked:
    rank = rank_of(scores, peer)
    if rank is Rank.NEWCOMER:
        return NEW
    full = ONE * scores.rules.full_weight.numerator // scores.rules.full_weight.denominator
    is_young = began is None or scores.epoch - began < WATCHED_EPOCHS
    is_watched = is_young or scores.standing(peer).convictions > 0
    return Ranked(rank, scores.weight(peer) / full if rank is Rank.ESTABLISHED else 0.0, is_watched)
