"""Round trips from a server to those that may come after it in a route, for its announcement.

Runs in the server's event loop. It does not know how the directory is read, nor how and when announcements are made:
both are handed in, and ``announced`` is asked for what was measured last.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
from collections.abc import Awaitable, Callable, Collection, Sequence

from dht.errors import DaemonDied, DhtError
from dht.records import MAX_NEIGHBOURS, MAX_ROUND_TRIP_US, Announcement, ServerState

logger = logging.getLogger(__name__)

_PINGS = 3
"""The middle one of so many is announced: the first may open a connection, and one may meet a pause."""
_MAX_ASKED = 24
"""Servers that are asked in one round: those known to be near, and some others that may be nearer."""
_AT_ONCE = 4
"""Servers that are asked at any time: sessions share the machine."""


class Neighbours:
    """Round trips of one server to at most ``MAX_NEIGHBOURS`` that serve the blocks behind its own, the nearest ones.

    Args:
        peer_id: the server's own.
        span: its blocks, ``[start, end)``.
        ping: measures one round trip to a peer, s; raises one of ``dht``'s errors if it does not answer.
        read: returns who serves the model now.
        chance: chooses whom to try of those that are not among the nearest.
    """

    def __init__(
        self,
        peer_id: str,
        span: tuple[int, int],
        ping: Callable[[str], Awaitable[float]],
        read: Callable[[], Awaitable[Collection[Announcement]]],
        chance: random.Random,
    ) -> None:
        self._peer_id = peer_id
        self._span = span
        self._ping = ping
        self._read = read
        self._chance = chance
        self._measured: dict[str, int] = {}

    @property
    def announced(self) -> tuple[tuple[str, int], ...]:
        """Peers and the round trips to them in us, the nearest first, as an announcement has them."""
        nearest = sorted(self._measured.items(), key=lambda entry: (entry[1], entry[0]))
        return tuple(nearest[:MAX_NEIGHBOURS])

    async def refresh(self) -> None:
        """Ask those that may come next; forget who has gone, or does not answer.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        following = self._following(await self._read())
        known = {peer: us for peer, us in self._measured.items() if peer in following}
        asked = self._asked(following, known)
        turn = asyncio.Semaphore(_AT_ONCE)
        answers = await asyncio.gather(*(self._measure(peer, turn) for peer in asked))
        fresh = dict(zip(asked, answers, strict=True))
        self._measured = {peer: us for peer, us in {**known, **fresh}.items() if us is not None}

    def _following(self, servers: Collection[Announcement]) -> set[str]:
        """Return the peers whose blocks go on where ours end."""
        end = self._span[1]
        return {
            server.owner
            for server in servers
            if server.start <= end < server.end and server.state is ServerState.ONLINE and server.owner != self._peer_id
        }

    def _asked(self, following: Collection[str], known: dict[str, int]) -> Sequence[str]:
        near = sorted(known, key=lambda peer: (known[peer], peer))[:MAX_NEIGHBOURS]
        others = sorted(set(following) - set(near))
        return near + self._chance.sample(others, min(len(others), _MAX_ASKED - len(near)))

    async def _measure(self, peer: str, turn: asyncio.Semaphore) -> int | None:
        async with turn:
            try:
                times_s = [await self._ping(peer) for _ in range(_PINGS)]
            except DaemonDied:
                raise
            except DhtError as error:
                logger.debug("no round trip to %s: %s", peer, error)
                return None
        return min(MAX_ROUND_TRIP_US, max(1, round(1e6 * statistics.median(times_s))))
