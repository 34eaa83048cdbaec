"""Let a client know where everyone stands: what it knew last time at once, and what the DHT says as soon as it is read.

Nothing waits for it. Runs in the client's event loop; the file is read and written in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self

from dht.errors import PeerUnreachable
from dht.standing.board import ScoreBoard, Standings
from dht.standing.ranks import Ranks, ranks_of
from dht.standing.sightings import Sightings
from dht.swarm import Swarm
from node.client.rank_file import Whose, read_ranks, write_ranks
from node.config import STANDINGS

_BEGIN_S = 1.0
"""A session that opens at once has the network for itself for so long, s."""
_RULES_S = 10.0
"""How long the swarm's rules are waited for."""


class RankWatch:
    """An async context manager; inside it, ranks are kept fresh.

    Args:
        swarm: entered.
        bootstraps: peer ids whose snapshots are asked for first.
        anchors: whose trust counts for this user; none: those of the swarm.
        home: where they are kept for the next time; None: nowhere.
    """

    def __init__(self, swarm: Swarm, bootstraps: Sequence[str], anchors: Sequence[str], home: Path | None) -> None:
        self._swarm = swarm
        self._board = ScoreBoard(swarm, bootstraps, anchors=anchors, sightings=Sightings())
        self._board.on_refreshed = self._refreshed
        self._path = home / STANDINGS if home is not None else None
        self._tell: Callable[[Ranks], None] = _ignore
        self._working: set[asyncio.Task[None]] = set()
        self.ranks: Ranks | None = None
        """What is known; None: nothing yet."""

    async def __aenter__(self) -> Self:
        self._later(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    def listen(self, tell: Callable[[Ranks], None]) -> None:
        """Have ``tell`` called in the event loop with what is known, now and whenever it has changed."""
        self._tell = tell
        if self.ranks is not None:
            tell(self.ranks)

    async def _watch(self) -> None:
        try:
            rules = await self._swarm.wait_for_rules(_RULES_S)
        except PeerUnreachable:
            return  # A client that signs says so itself.
        whose = self._whose()
        if self._path is not None and whose.swarm:
            epoch = rules.epoch_of(time.time())
            known = await asyncio.to_thread(read_ranks, self._path, whose, epoch)
            if known is not None:
                self._learn(known)
        await asyncio.sleep(_BEGIN_S)
        await self._board.run()

    def _refreshed(self, standings: Standings) -> None:
        ranks = ranks_of(standings.scores, standings.evidence.works)
        self._learn(ranks)
        if self._path is not None and (whose := self._whose()).swarm:
            self._later(asyncio.to_thread(write_ranks, self._path, whose, standings.scores.epoch, ranks))

    def _learn(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._tell(ranks)

    def _whose(self) -> Whose:
        return Whose(self._swarm.parameters_hash.hex(), tuple(sorted(self._board.anchors)))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)


def _ignore(_: Ranks) -> None:
    """Tell nobody."""
