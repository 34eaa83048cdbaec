"""Say how large a swarm is from what look-ups found, how far a region reaches, and which ids crowd around a key.

Ids of honest members are spread evenly, so the distances from any point to the nearest of them tell how many there are.
Whoever grinds keys can crowd around a point that he chose, not around points that others draw: the size is the median
over look-ups of ids that nobody foresees, spread evenly, so that a crowd is near to few of them. A region is the space
in which ``REGION_NODES`` members are expected by that size.
The DHT ids are integers here, and time is passed in. This file does not know peers or records. Pure.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence

ID_BITS = 160
ID_SPACE: int = 2**ID_BITS

REGION_NODES = 20
"""Members that are expected within a region, and the fewest that it takes in, where there are so many."""

MAX_REGION_NODES = 64
"""Most members that one record is stored at."""

NUM_SAMPLES = 5
"""Look-ups of ids whose median counts."""

SAMPLE_LIFE_S = 600.0
"""Seconds for which a look-up counts."""

NARROW = 2
"""A region's nearest members lie within one part in so many of it: others of the region are looked for as well."""

CROWD_MARGIN = 1.5
"""The swarm may be larger than estimated by this factor without any key being called crowded."""

CROWD_LOG_CHANCE = math.log(1e-6)
"""Ids that honest members would have with a smaller chance are a crowd."""

MIN_CROWD = 5
"""Fewer ids are no crowd, however near they are."""


def estimate_size(distances: Sequence[int], beam: int) -> float:
    """Estimate how many members there are from the nearest ones to one random id.

    Args:
        distances: From the id to the nearest members, in rising order.
        beam: How many were asked for; where fewer came, they are all.
    """
    if len(distances) < beam:
        return float(len(distances))
    # The i-th nearest of n members is expected at i / n of the space: a line through zero, fitted by least squares.
    shares = [distance / ID_SPACE for distance in distances[:beam]]
    squares = sum(share * share for share in shares)
    if squares == 0.0:
        return float(ID_SPACE)
    return float(sum(rank * share for rank, share in enumerate(shares, 1)) / squares)


def sampled_ids(first: int, count: int) -> list[int]:
    """Give ids to look up: spread over the id space as ``NUM_SAMPLES`` of them are, from one drawn at random on.

    Of ids drawn one by one, three of five lie in the quarter of the space around a crowd once in ten times; and then
    the crowd, which may be most of a small swarm, is taken for its density.
    """
    return [(first + step * ID_SPACE // NUM_SAMPLES) % ID_SPACE for step in range(count)]


class Density:
    """What the latest look-ups of random ids say about the swarm's size."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=4 * NUM_SAMPLES)  # (when, size)

    def note(self, now_s: float, distances: Sequence[int], beam: int) -> None:
        """Take in one look-up of a random id; arguments as for ``estimate_size``."""
        self._samples.append((now_s, estimate_size(distances, beam)))

    def age_s(self, now_s: float) -> float:
        """Say how old the latest look-up is, in seconds."""
        return now_s - self._samples[-1][0] if self._samples else math.inf

    def forget(self) -> None:
        """Let no look-up of the past count: the swarm may have grown."""
        self._samples.clear()

    def num_missing(self, now_s: float) -> int:
        """Say how many look-ups are wanted before the size is known."""
        return max(0, NUM_SAMPLES - len(self._fresh(now_s)))

    def size(self, now_s: float) -> float:
        """Give the number of members, at least 1; 1 where nothing is known."""
        sizes = self._fresh(now_s)
        return max(1.0, statistics.median(sizes)) if sizes else 1.0

    def _fresh(self, now_s: float) -> list[float]:
        return [size for when_s, size in self._samples if now_s - when_s <= SAMPLE_LIFE_S]


def radius_of(size: float) -> int:
    """Give the distance within which ``REGION_NODES`` of ``size`` members are expected."""
    if size <= REGION_NODES:
        return ID_SPACE - 1
    return int(ID_SPACE * (REGION_NODES / size))


def is_narrow(distances: Sequence[int], radius: int) -> bool:
    """Say whether the nearest members (rising distances) fill so little of the region that it must hold others."""
    return len(distances) >= REGION_NODES and distances[REGION_NODES - 1] < radius // NARROW


def is_crowded(distances: Sequence[int], size: float) -> bool:
    """Say whether members crowd around a key as honest ones would not; rising distances.

    Honest ids within a distance follow Poisson's law; its tail is bounded as Chernoff has it.
    """
    for count, distance in enumerate(distances, 1):
        mean = CROWD_MARGIN * size * ((distance + 1) / ID_SPACE)
        if count >= MIN_CROWD and count > mean:
            log_chance = count - mean + count * math.log(mean / count) if mean > 0 else -math.inf
            if log_chance < CROWD_LOG_CHANCE:
                return True
    return False


def spread(centre: int, radius: int, count: int) -> list[int]:
    """Give ``count`` ids evenly spread over the distances up to ``radius`` from ``centre``, the nearest first."""
    return [centre ^ (radius * (2 * step + 1) // (2 * count)) for step in range(count)]


def choose(distances: Sequence[int], radius: int) -> list[int]:
    """Choose the members that hold a region's records.

    The ``REGION_NODES`` nearest; where those are narrow, all within the radius. Of more than ``MAX_REGION_NODES`` one
    half is the nearest and the other is spread over the radius, where a crowd around the key cannot be everywhere.

    Args:
        distances: From the key to the members known, in rising order.
        radius: Of the region.

    Returns:
        Indices into ``distances``, in rising order.
    """
    if not is_narrow(distances, radius):
        return list(range(min(REGION_NODES, len(distances))))
    inside = sum(distance <= radius for distance in distances)
    if inside <= MAX_REGION_NODES:
        return list(range(inside))
    half = MAX_REGION_NODES // 2
    chosen = set(range(half))
    for step in range(half):
        target = radius * (2 * step + 1) // (2 * half)
        rest = [index for index in range(inside) if index not in chosen]
        chosen.add(min(rest, key=lambda index: abs(distances[index] - target)))
    return sorted(chosen)
