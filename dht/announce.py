"""Keep what this node says about itself true on the DHT: at once at start and on change, then again and again.

At the end it is withdrawn by a tombstone that outlives the announcement.

This file does not know what is announced. It runs on the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from dht.errors import DaemonDied, DhtError
from dht.identity import Identity
from dht.records import Announcement, Record, ServerState, SignedRecord, seal
from dht.swarm import Swarm

logger = logging.getLogger(__name__)

REFRESH_S = 20.0
"""Seconds between two announcements of the same."""

LIFE_REFRESHES = 3
"""An announcement lives so many refreshes: two may be lost."""

WITHDRAW_S = 3.0
"""Seconds that the withdrawal may take before the node goes without it."""

MAX_AHEAD_S = 30
"""Seconds that signed times may run ahead of the clock when updates follow each other in less than a second each."""

MakeRecords = Callable[[int, int], Sequence[Record]]
"""``make(t, life_s)``: what to say now, signed at unix second ``t`` for ``life_s`` seconds."""


class Announcer:
    """An async context manager; inside it, this node's records stand on the DHT."""

    def __init__(
        self,
        swarm: Swarm,
        identity: Identity,
        make: MakeRecords,
        *,
        refresh_s: float = REFRESH_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Describe what is announced.

        Args:
            swarm: Where.
            identity: Who signs.
            make: Gives the records with the time and life that it is called with; called for every announcement.
            refresh_s: Seconds between two announcements.
            clock: Unix seconds.
        """
        self._swarm = swarm
        self._identity = identity
        self._make = make
        self._refresh_s = refresh_s
        self._clock = clock
        self._life_s = max(LIFE_REFRESHES, round(LIFE_REFRESHES * refresh_s))
        self._last_t = 0
        self._said: dict[tuple[bytes, bytes], SignedRecord] = {}
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._resume()
        await self.update()
        self._task = asyncio.get_running_loop().create_task(self._refresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(WITHDRAW_S):
                await self._withdraw()
        except (DhtError, TimeoutError) as error:
            logger.debug("not withdrawn: %s", error)

    async def update(self) -> bool:
        """Announce the present state now.

        Returns:
            True when every record is held by at least one member.
        """
        async with self._turn:
            ahead_s = self._last_t - self._clock() - MAX_AHEAD_S
            if ahead_s > self._life_s:
                self._last_t = 0  # The clock was set back: what was signed ahead of it was not believed, or has ended.
            else:
                await asyncio.sleep(max(0.0, ahead_s))
            records = [seal(record, self._identity) for record in self._make(self._next_t(), self._life_s)]
            for signed in records:
                self._said[signed.key, signed.subkey] = signed
            return all(await asyncio.gather(*(self._swarm.store(signed) for signed in records)))

    def _next_t(self) -> int:
        """Give the time to sign with: the present, but later than before, because only a later expiry replaces."""
        self._last_t = max(int(self._clock()), self._last_t + 1)
        return self._last_t

    async def _resume(self) -> None:
        """Sign later than the tombstone of our last run, if it was a moment ago."""
        now_s = int(self._clock())
        for record in self._make(now_s, self._life_s):
            if isinstance(record, Announcement):
                for standing in await self._swarm.fetch(record.KIND, record.key_parts()):
                    if isinstance(standing, Announcement) and standing.subkey == record.subkey:
                        self._last_t = max(self._last_t, standing.t + max(0, standing.life_s - self._life_s))

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                async with asyncio.timeout(self._refresh_s):
                    if not await self.update():
                        logger.warning("an announcement was not stored by any peer; trying again in a while")
            except DaemonDied:
                return
            except (DhtError, TimeoutError) as error:
                logger.warning("an announcement failed: %s; trying again in a while", error)

    async def _withdraw(self) -> None:
        async with self._turn:
            t = self._next_t()
            stones = [
                seal(replace(said.record, state=ServerState.OFFLINE, t=t), self._identity)
                for said in self._said.values()
                if isinstance(said.record, Announcement) and said.record.state != ServerState.OFFLINE
            ]
            await asyncio.gather(*(self._swarm.store(stone) for stone in stones))
