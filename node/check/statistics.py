"""What the errors of a chunk's positions come to: three numbers, because one can be played against.

    median    what a server that cheats throughout cannot hide; chance moves it least, so it separates best
    high      the upper tenth: who corrupts 31 of 64 positions leaves the median alone, and this not
    largest   the worst position: who corrupts a single one

Over several chunks the medians are pooled: their mean, as a multiple of what honest servers have, shows what no single
chunk shows. Pure; knows no thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HIGH = 0.9
"""The upper quantile."""
MIN_POOLED = 8
"""Chunks that the pooled test needs."""


@dataclass(frozen=True, slots=True)
class ChunkStatistics:
    """The errors of one chunk, summed up."""

    median: float
    """The lower median; of an even number the smaller of the middle two."""
    high: float
    """A tenth of the positions is above it."""
    largest: float
    num_positions: int

    def worst_with(self, other: ChunkStatistics) -> ChunkStatistics:
        """Return the worse of both in each statistic, over the fewer positions: of rows that went together."""
        return ChunkStatistics(
            max(self.median, other.median),
            max(self.high, other.high),
            max(self.largest, other.largest),
            min(self.num_positions, other.num_positions),
        )


def summarise(errors: Sequence[float]) -> ChunkStatistics:
    """Sum up the errors of a chunk's positions; infinities count, NaN counts as infinity.

    Raises:
        ValueError: there are none.
    """
    if not errors:
        raise ValueError("A chunk without positions has no statistics.")
    ordered = sorted(math.inf if math.isnan(error) else error for error in errors)
    return ChunkStatistics(quantile(ordered, 0.5), quantile(ordered, HIGH), ordered[-1], len(ordered))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest number that at least ``share`` of the ascending ``ordered`` are not above."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def pooled_ratio(ratios: Sequence[float]) -> float | None:
    """Return the mean of chunks' medians, each divided by the honest mean of its kind; None: too few of them.

    Args:
        ratios: of chunks of one server, drawn without a look at them: leaving out good ones convicts anyone.
    """
    if len(ratios) < MIN_POOLED:
        return None
    return math.fsum(ratios) / len(ratios)
