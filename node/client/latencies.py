"""Round trips between a client and servers, and between servers: what was measured, what others said, what is assumed.

Pure. A client knows only its own round trips for certain. What a server announces about its neighbours is its own word,
and the one who gains by a short round trip is the one who announces it, so a word counts only as far as the client's
own measurements allow.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dht.records import MAX_ROUND_TRIP_US, Announcement

CLIENT = ""
"""Stands for the client itself where a peer id is expected."""

UNKNOWN_ROUND_TRIP_US = 20_000
"""Assumed of a server where no round trip at all has been measured: about that to another town, us."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """What is known of round trips, us.

    Unknown pairs are assumed as follows.

    - Client and server: the median of what the client has measured, so that dodging pings makes no server look near.
    - Two servers: the longer of their round trips to the client. By the triangle inequality the truth lies between the
      difference and the sum of these two, and this is the middle.

    What a server announces replaces the second assumption where the client has measured both ends, but never falls
    below the difference of its two measurements. Where it lacks one, a word can only make a pair slower. Where both
    ends announce, the longer one counts.
    """

    own_us: Mapping[str, int] = field(default_factory=dict)
    """From the client to each server, as it has measured."""
    announced_us: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """From one server to another, as the first one says."""
    assumed_us: int = UNKNOWN_ROUND_TRIP_US
    """Between the client and a server that it has not measured."""

    @classmethod
    def of(cls, servers: Iterable[Announcement], own_us: Mapping[str, int]) -> Latencies:
        """Take what ``servers`` announce beside what the client has measured itself."""
        announced = {(server.owner, peer): us for server in servers for peer, us in server.neighbours}
        own = {peer: _bounded(us) for peer, us in own_us.items()}
        return cls(own, announced, int(statistics.median_low(own.values())) if own else UNKNOWN_ROUND_TRIP_US)

    def round_trip_us(self, one: str, other: str) -> int:
        """Return the round trip between two peers; one of them may be ``CLIENT``, us."""
        if CLIENT in (one, other):
            return self.own_us.get(one or other, self.assumed_us)
        near_us, far_us = self.round_trip_us(CLIENT, one), self.round_trip_us(CLIENT, other)
        words = [self.announced_us.get((one, other)), self.announced_us.get((other, one))]
        said_us = max((_bounded(word) for word in words if word is not None), default=None)
        if said_us is None:
            return max(near_us, far_us)
        if one in self.own_us and other in self.own_us:
            return max(said_us, abs(near_us - far_us))
        return max(said_us, near_us, far_us)

    def between(self, peers: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the round trips between all of some servers, us, ``[peers, peers]``."""
        own = np.array([self.own_us.get(peer, self.assumed_us) for peer in peers], dtype=np.int64)
        table: npt.NDArray[np.int64] = np.maximum.outer(own, own)
        index = {peer: at for at, peer in enumerate(peers)}
        for one, other in self.announced_us:
            at, to = index.get(one), index.get(other)
            if at is not None and to is not None:
                table[at, to] = table[to, at] = self.round_trip_us(one, other)
        return table


def _bounded(round_trip_us: int) -> int:
    return max(0, min(round_trip_us, MAX_ROUND_TRIP_US))
