"""Where each session's keys and values stand in the server's cache: contiguous runs of positions. Pure bookkeeping.

A session gets its slot when it opens and keeps it until it ends: nothing that is alive is moved or evicted. Slots are
placed first fit, and neighbours that are free again become one gap.

    |## a ##|....|#### b ####|.. free ..|## c ##|........|
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

PAGE = 16
"""Slots are multiples of so many positions, so that gaps stay usable."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A run of positions that belongs to one session."""

    start: int
    size: int
    """Positions: rows times capacity, rounded up to pages."""


class Slots:
    """The positions of a cache, leased to sessions."""

    def __init__(self, num_positions: int) -> None:
        self.total = num_positions // PAGE * PAGE
        self._gaps: list[tuple[int, int]] = [(0, self.total)] if self.total else []
        """Start and size of every gap, by start; no two touch."""

    @property
    def free(self) -> int:
        """Positions that belong to nobody, in however many gaps."""
        return sum(size for _, size in self._gaps)

    @property
    def largest(self) -> int:
        """Positions of the largest slot that could be leased now."""
        return max((size for _, size in self._gaps), default=0)

    def can_lease(self, num_positions: int) -> bool:
        """Say whether a slot of ``num_positions`` can be leased now."""
        return _pages(num_positions) <= self.largest

    def lease(self, num_positions: int) -> Slot:
        """Lease a slot; the caller has asked ``can_lease``."""
        wanted = _pages(num_positions)
        for index, (start, size) in enumerate(self._gaps):
            if size >= wanted:
                rest = [(start + wanted, size - wanted)] if size > wanted else []
                self._gaps[index : index + 1] = rest
                return Slot(start, wanted)
        raise AssertionError("no gap is large enough: can_lease was not asked")

    def release(self, slot: Slot) -> None:
        """Take back a slot that was leased, once."""
        start, size = slot.start, slot.size
        index = bisect_left(self._gaps, (start, 0))
        assert index == len(self._gaps) or start + size <= self._gaps[index][0], "the slot is free already"
        assert not index or sum(self._gaps[index - 1]) <= start, "the slot is free already"
        if index < len(self._gaps) and start + size == self._gaps[index][0]:
            size += self._gaps.pop(index)[1]
        if index and sum(self._gaps[index - 1]) == start:
            index -= 1
            start, size = self._gaps[index][0], self._gaps.pop(index)[1] + size
        self._gaps.insert(index, (start, size))


def _pages(num_positions: int) -> int:
    return max(1, -(-num_positions // PAGE)) * PAGE
