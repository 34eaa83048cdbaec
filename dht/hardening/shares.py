"""Tell who holds how much of something scarce, and what whoever holds most gives up first.

    heaviest ─── heap of (-weight, holder) ──> holder ─── heap of (rank, place) ──> first place to go
    both heaps keep entries that no longer hold; these are passed by, and swept out once they are the most

A step costs the logarithm of what is held. This file does not know what places are. Pure; it runs on the event loop.
"""

import heapq
from typing import Generic, TypeVar

Place = TypeVar("Place", int, bytes)

Rank = tuple[int, float]
"""What is lowest goes first."""

SWEPT_AT = 16
"""Entries that no longer hold and are let lie in the smallest heap."""


class _Share(Generic[Place]):
    """What one holder has."""

    __slots__ = ("order", "places", "weight")

    def __init__(self) -> None:
        self.weight = 0
        self.places: dict[Place, tuple[Rank, int]] = {}
        self.order: list[tuple[Rank, Place]] = []


class Shares(Generic[Place]):
    """Weights by holder and place; a place may have several holders."""

    def __init__(self) -> None:
        self._shares: dict[bytes, _Share[Place]] = {}
        self._heaviest: list[tuple[int, bytes]] = []

    def weight(self, holder: bytes) -> int:
        """Give the weight of all that a holder has."""
        share = self._shares.get(holder)
        return 0 if share is None else share.weight

    def weight_at(self, holder: bytes, place: Place) -> int:
        """Give the weight of what a holder has at one place."""
        share = self._shares.get(holder)
        return 0 if share is None or place not in share.places else share.places[place][1]

    def rank_at(self, holder: bytes, place: Place) -> Rank:
        """Give the rank of a place that a holder has."""
        return self._shares[holder].places[place][0]

    def weights(self) -> dict[bytes, int]:
        """Give the weight of every holder."""
        return {holder: share.weight for holder, share in self._shares.items()}

    def add(self, holder: bytes, place: Place, weight: int, rank: Rank) -> None:
        """Add to what a holder has at a place; the highest rank that it ever had there holds."""
        share = self._shares.setdefault(holder, _Share())
        standing = share.places.get(place)
        before = 0 if standing is None else standing[1]
        if standing is None or rank > standing[0]:
            heapq.heappush(share.order, (rank, place))
        else:
            rank = standing[0]
        share.places[place] = rank, before + weight
        self._weigh(holder, share, weight)
        if len(share.order) > 2 * len(share.places) + SWEPT_AT:
            share.order = [(rank, place) for place, (rank, _) in share.places.items()]
            heapq.heapify(share.order)

    def take(self, holder: bytes, place: Place, weight: int) -> None:
        """Take from what a holder has at a place; what has no weight left is no longer there."""
        share = self._shares[holder]
        rank, before = share.places[place]
        if before > weight:
            share.places[place] = rank, before - weight
        else:
            del share.places[place]
        self._weigh(holder, share, -weight)

    def heaviest(self) -> bytes | None:
        """Name the holder who has most; None where nobody has anything."""
        while self._heaviest:
            weight, holder = self._heaviest[0]
            if self.weight(holder) == -weight:
                return holder
            heapq.heappop(self._heaviest)
        return None

    def gap(self, holder: bytes) -> int:
        """Say how much more than a holder the heaviest has."""
        heaviest = self.heaviest()
        return 0 if heaviest is None else self.weight(heaviest) - self.weight(holder)

    def first(self, holder: bytes) -> Place:
        """Name the place that a holder gives up first; it has one."""
        share = self._shares[holder]
        while True:
            rank, place = share.order[0]
            standing = share.places.get(place)
            if standing is not None and standing[0] == rank:
                return place
            heapq.heappop(share.order)

    def _weigh(self, holder: bytes, share: _Share[Place], more: int) -> None:
        share.weight += more
        if not share.places:
            del self._shares[holder]
        elif more:
            heapq.heappush(self._heaviest, (-share.weight, holder))
        if len(self._heaviest) > 2 * len(self._shares) + SWEPT_AT:
            self._heaviest = [(-share.weight, holder) for holder, share in self._shares.items()]
            heapq.heapify(self._heaviest)
