"""What a server says about itself on the DHT, kept true while it serves. Runs in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time

from dht.announce import Announcer
from dht.directory import read_directory
from dht.errors import DhtError
from dht.identity import Identity
from dht.records import MAX_ROUND_TRIP_US, Announcement, ManifestRecord, ServerState
from dht.swarm import Swarm
from node import __version__
from node.run.neighbours import Neighbours
from node.run.serve_plan import ServePlan
from node.serve.balance import carried_rate
from node.serve.handler import Handler
from node.serve.measure import SpanCost
from node.serve.statistics import Statistics

logger = logging.getLogger(__name__)

_SAY_S = 5.0
"""How long an announcement may take that somebody waits for, s."""
REFRESH_S = 20
"""How often a server renews its announcement, s; the announcement lives three times as long."""


class Announcing:
    """Keeps the server's announcement true: its blocks, whether sessions are taken, and what is free.

    Args:
        identity: signs.
        swarm: where.
        plan: the model, and how its weights are held.
        statistics: how long steps wait.
        network_tokens_per_s: hidden states that come in and go out again in a second; inf: not known.
    """

    def __init__(
        self,
        identity: Identity,
        swarm: Swarm,
        plan: ServePlan,
        statistics: Statistics,
        network_tokens_per_s: float = math.inf,
    ) -> None:
        self._identity = identity
        self._swarm = swarm
        self._checkpoint = plan.checkpoint
        self._plan = plan
        self._statistics = statistics
        self._network_tokens_per_s = network_tokens_per_s
        self._span = (0, 1)
        self._state = ServerState.JOINING
        self._handler: Handler | None = None
        self._cost: SpanCost | None = None
        self._ends = 0
        self._neighbours = self._of(self._span)
        self.announcer = Announcer(swarm, identity, self._records, refresh_s=REFRESH_S)

    def joining(self, span: tuple[int, int]) -> None:
        """From the next announcement on: the server is to hold the blocks ``span``, at the rate that is known of it."""
        self._span, self._state = span, ServerState.JOINING
        self._neighbours = self._of(span)
        self._handler, self._ends = None, 0

    def _of(self, span: tuple[int, int]) -> Neighbours:
        return Neighbours(self._identity.peer_id, span, self._swarm.ping, self._read_servers, random.Random())  # noqa: S311 - chooses whom to ping

    async def _read_servers(self) -> tuple[Announcement, ...]:
        return (await read_directory(self._swarm, self._checkpoint.manifest32, time.time())).servers

    async def watch_neighbours(self) -> None:
        """Keep the round trips to servers of the blocks that follow, until cancelled."""
        while True:
            with contextlib.suppress(DhtError):
                await self._neighbours.refresh()
            await asyncio.sleep(REFRESH_S)

    def loaded(self, handler: Handler, cost: SpanCost, ends: int) -> None:
        """From the next announcement on: the blocks are there; ``ends`` as the announcement has it."""
        self._handler, self._cost, self._ends = handler, cost, ends

    async def state(self, state: ServerState) -> None:
        """Announce at once whether sessions are taken; what cannot be said now is said with the next refresh."""
        self._state = state
        try:
            async with asyncio.timeout(_SAY_S):
                await self.announcer.update()
        except (DhtError, TimeoutError) as error:
            logger.warning("not announced now: %s", error)

    def _rate(self, cost: SpanCost) -> float:
        return carried_rate(cost.blocks_per_s, self._span[1] - self._span[0], self._network_tokens_per_s)

    def _records(self, t: int, life_s: int) -> list[Announcement | ManifestRecord]:
        config, manifest = self._checkpoint.config, self._checkpoint.manifest32
        slots, load = self._handler.slots if self._handler else None, self._statistics.load(time.monotonic())
        announcement = Announcement(
            manifest=manifest,
            shard=0,
            owner=self._identity.peer_id,
            t=t,
            life_s=life_s,
            state=self._state,
            start=self._span[0],
            end=self._span[1],
            dtype=self._plan.weights.held_in,
            throughput_milli=int(1000 * self._rate(self._cost)) if self._cost else 0,
            max_length=slots.total if slots else 0,
            cache_free_tokens=slots.free if slots else 0,
            addresses=tuple(self._swarm.addresses[:8]),
            version=__version__,
            ends=self._ends,
            prefill_milli=int(self._cost.prefill_blocks_per_s * 1000) if self._cost else 0,
            queue_us=min(MAX_ROUND_TRIP_US, int(load.wait_p50_ms * 1000)),
            neighbours=self._neighbours.announced,
        )
        model = ManifestRecord(
            manifest=manifest,
            owner=self._identity.peer_id,
            t=t,
            life_s=life_s,
            name=self._checkpoint.name,
            model_type=config.model_type,
            num_blocks=self._checkpoint.num_blocks,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )
        return [announcement, model]
