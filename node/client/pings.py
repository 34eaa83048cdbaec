"""The client's own round trips to servers: measured in the background, kept for some minutes, some servers at a time.

Runs in the client's event loop. It knows neither routes nor what the round trips are for. A server that cannot be
reached is reported once for each attempt, because it is gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from dht.errors import DaemonDied, RemoteError, UnavailableError

MAX_ROUND = 32
"""Servers that are asked after one look at the directory; those left over have their turn after the next."""
MAX_AT_ONCE = 8
"""Questions under way at any time."""
KEPT_S = 300.0
"""How long a round trip counts as measured, s."""
_ASKED_TWICE = 2
"""The shorter of two is kept: a scheduler's pause is no distance."""


@dataclass(frozen=True, slots=True)
class _Measured:
    round_trip_us: int
    at_s: float
    """By the monotonic clock."""


class Pings:
    """Round trips of one client.

    Args:
        ping: measures one round trip to a peer, s; raises one of ``dht``'s errors if it does not answer.
        unreachable: is told of peers that do not answer.
        chance: chooses whom to ask where there are too many. A fixed order would let newcomers crowd others out.
    """

    def __init__(
        self,
        ping: Callable[[str], Awaitable[float]],
        unreachable: Callable[[str, Exception], None],
        chance: random.Random,
    ) -> None:
        self._ping = ping
        self._unreachable = unreachable
        self._chance = chance
        self._measured: dict[str, _Measured] = {}
        self._round: asyncio.Task[None] | None = None

    def known_us(self, now_s: float) -> dict[str, int]:
        """Return the round trips that were measured lately, us, by peer.

        Args:
            now_s: of the monotonic clock.
        """
        return {peer: known.round_trip_us for peer, known in self._measured.items() if now_s - known.at_s < KEPT_S}

    def begin(self, peers: Iterable[str]) -> None:
        """Begin to ask those of ``peers`` whose round trips are not known, unless a round is under way."""
        if self._round is not None and not self._round.done():
            return
        now_s = time.monotonic()
        self._measured = {peer: known for peer, known in self._measured.items() if now_s - known.at_s < KEPT_S}
        unknown = sorted(set(peers) - set(self._measured))
        if unknown:
            asked = self._chance.sample(unknown, min(MAX_ROUND, len(unknown)))
            self._round = asyncio.create_task(self._ask_all(asked))

    async def wait(self, timeout_s: float) -> None:
        """Wait until the round under way is over, but not longer than ``timeout_s``."""
        if self._round is not None:
            await asyncio.wait({self._round}, timeout=timeout_s)

    async def close(self) -> None:
        """End what is under way."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    async def _ask_all(self, peers: list[str]) -> None:
        turn = asyncio.Semaphore(MAX_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for peer in peers:
                group.create_task(self._ask(peer, turn))

    async def _ask(self, peer: str, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                for _ in range(_ASKED_TWICE):
                    self._note(peer, await self._ping(peer))
            except DaemonDied:
                return  # Ours: nothing can be said of the peer.
            except (UnavailableError, RemoteError) as error:
                self._measured.pop(peer, None)
                self._unreachable(peer, error)

    def _note(self, peer: str, round_trip_s: float) -> None:
        known = self._measured.get(peer)
        round_trip_us = max(1, round(1e6 * round_trip_s))
        if known is not None:
            round_trip_us = min(round_trip_us, known.round_trip_us)
        self._measured[peer] = _Measured(round_trip_us, time.monotonic())
