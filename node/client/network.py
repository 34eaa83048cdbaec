"""The swarm as a client's model uses it: looks the directory up, plans routes, opens chains, from a synchronous thread.

Owns the loop thread and the ``Swarm`` in it. A server that refuses or cannot be reached is left out of the next plan
for a while, longer each time; so is one that is lost in mid-session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Self

from dht.directory import Directory, read_directory
from dht.identity import Identity
from dht.parameters import parse_join
from dht.swarm import Swarm
from node.client.chain import Chain, SessionShape, StageFailed, open_chain
from node.client.loop_thread import LoopThread
from node.client.repair import Repaired
from node.client.route import Route, Stage, plan_route
from node.client.thin_terms import ThinTerms
from node.errors import MissingBlocks, Refused, UserError
from node.wire import Result, Step

logger = logging.getLogger(__name__)

_AVOID_S = 30.0
"""How long a server that failed is left out of routes the first time, s; twice as long with every further time."""
_MAX_AVOID_S = 900.0
_RECENT_S = 10.0
"""The directory as it was so long ago is good enough to begin with; a new look is taken meanwhile."""
_LOOK_S = 0.3
"""For a look at the directory whoever has an older one waits so long: members that are gone make it slow."""
_MAX_OPEN_ATTEMPTS = 8
_HOPELESS_CODES = frozenset({"too_long", "bad_open", "unsupported"})
"""Refusals that every other server would repeat."""


class Network:
    """A connected client. Made by ``connect``; ended by ``close``, or with the process."""

    def __init__(
        self, loop: LoopThread, swarm: Swarm, exits: contextlib.AsyncExitStack, *, manifest: bytes, num_blocks: int,
        step_timeout_s: float,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._swarm = swarm
        self._manifest = manifest
        self._num_blocks = num_blocks
        self._step_timeout_s = step_timeout_s
        self._avoid: dict[str, _Avoided] = {}
        self._known: Directory | None = None
        """The directory as it was last seen."""
        self._known_s = 0.0
        """When that was, by the monotonic clock."""
        self._looking: asyncio.Task[Directory] | None = None
        self.on_repaired: Callable[[Repaired], None] = _log_repaired
        """Called in the loop's thread when a session has got other stages for lost ones."""
        self.last_route: Route | None = None
        """The route of the session opened last."""
        self._chains: set[Chain] = set()
        """Sessions that are open; only the loop's thread touches it."""
        self._finalizer = weakref.finalize(self, _leave, loop, exits, self._chains)

    @classmethod
    def connect(
        cls, *, manifest: bytes, num_blocks: int, join: str | None, initial_peers: Sequence[str], step_timeout_s: float
    ) -> Self:
        """Join a swarm as a client that serves nothing.

        Args:
            manifest: identity of the model, 32 bytes.
            num_blocks: blocks of the model.
            join: join code or multiaddrs.
            initial_peers: multiaddrs, instead of ``join``.
            step_timeout_s: how long a route may stay silent in one step, s.

        Raises:
            UserError: neither ``join`` nor ``initial_peers`` is given.
            DhtError: the code is damaged, or nobody answers.
        """
        text = join or " ".join(initial_peers)
        if not text:
            raise UserError("No swarm is named; pass join='CODE' or initial_peers=[...].")
        code = parse_join(text)
        loop = LoopThread()
        exits = contextlib.AsyncExitStack()

        async def enter() -> Swarm:
            return await exits.enter_async_context(Swarm(Identity.ephemeral(), join=code, client_mode=True))

        try:
            swarm = loop.run(enter())
        except BaseException:
            loop.stop()
            raise
        return cls(loop, swarm, exits, manifest=manifest, num_blocks=num_blocks, step_timeout_s=step_timeout_s)

    def directory(self) -> Directory:
        """Look up who serves the model now."""
        return self._loop.run(self._look())

    def open(
        self,
        batch: int,
        left_padding: tuple[int, ...],
        max_length: int,
        codec: str,
        thin: ThinTerms | None = None,
    ) -> Chain:
        """Plan a route and open a session along it; a stage that fails is planned around.

        Args:
            batch: rows.
            left_padding: padding positions per row; empty for none.
            max_length: positions to reserve.
            codec: how hidden states travel.
            thin: what the ends of the route do for a client without weights; None: nothing.

        Raises:
            MissingBlocks: some blocks have no server that can be used.
            StageFailed: servers keep refusing.
        """
        shape = SessionShape(self._manifest, batch, left_padding, max_length, codec, thin)
        chain = self._loop.run(self._open_and_keep(shape))
        self.last_route = chain.route
        return chain

    async def _open_and_keep(self, shape: SessionShape) -> Chain:
        chain = await self._open(shape)
        self._chains.add(chain)
        return chain

    async def _directory(self) -> Directory:
        """Return the directory, seen just now if that does not take long."""
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = asyncio.create_task(self._look())
            looking.add_done_callback(_forget_outcome)  # The last look may serve instead.
        if self._known is None:
            return await asyncio.shield(looking)
        if time.monotonic() - self._known_s > _RECENT_S:
            await asyncio.wait({looking}, timeout=_LOOK_S)
        return self._known

    async def _look(self) -> Directory:
        known = await read_directory(self._swarm, self._manifest, time.time())
        self._known, self._known_s = known, time.monotonic()
        return known

    def _avoided(self) -> list[str]:
        """Return the peers that are left out now, whoever failed last first."""
        now = time.monotonic()
        self._avoid = {peer: entry for peer, entry in self._avoid.items() if entry.until_s + _MAX_AVOID_S > now}
        avoided = [peer for peer, entry in self._avoid.items() if entry.until_s > now]
        return sorted(avoided, key=lambda peer: -self._avoid[peer].failed_s)

    # What ``repair.Planner`` asks.

    async def plan(self, start: int, end: int, without: Set[str], *, needs_ends: bool) -> tuple[Stage, ...]:
        """Return stages that cover the blocks ``[start, end)``, none of them a peer of ``without``.

        A server that failed is taken all the same where there is no other: it may be back.

        Raises:
            MissingBlocks: some blocks have no server.
        """
        route = await self._plan(without, needs_ends=needs_ends, start=start, end=end)
        return route.stages

    def failed(self, peer_id: str, reason: Exception) -> None:
        """Leave a peer out for a while, longer each time."""
        now = time.monotonic()
        entry = self._avoid.get(peer_id)
        if entry is not None and entry.until_s > now:
            self._avoid[peer_id] = replace(entry, failed_s=now)
            return
        count = entry.count + 1 if entry is not None else 1
        self._avoid[peer_id] = _Avoided(now + _avoid_s(reason, count), count, now)

    async def _open(self, shape: SessionShape) -> Chain:
        last_failure: StageFailed | None = None
        failed: set[str] = set()
        needs_ends = shape.thin is not None
        planner = _SessionPlanner(self, needs_ends=needs_ends)
        for _ in range(_MAX_OPEN_ATTEMPTS):
            try:
                route = await self._plan(failed, needs_ends=needs_ends)
            except MissingBlocks as missing:
                raise last_failure or missing from None  # A failure says more than that its server is left out.
            try:
                return await open_chain(self._swarm, route, shape, step_timeout_s=self._step_timeout_s, planner=planner)
            except StageFailed as failure:
                if isinstance(failure.reason, Refused) and failure.reason.code in _HOPELESS_CODES:
                    raise failure.reason from failure
                last_failure = failure
                failed.add(failure.stage.peer_id)
                self.failed(failure.stage.peer_id, failure.reason)
        assert last_failure is not None
        raise last_failure

    async def _plan(self, without: Set[str], *, needs_ends: bool, start: int = 0, end: int | None = None) -> Route:
        """Plan a route without the peers ``without``.

        Those that failed are left out for a while, unless there is no other; then whoever failed longest ago comes
        first, so that of several each is tried.

        Raises:
            MissingBlocks: some blocks have no server.
        """

        def plan(directory: Directory, avoid: Set[str]) -> Route:
            return plan_route(directory, self._num_blocks, avoid, needs_ends=needs_ends, start=start, end=end)

        with contextlib.suppress(MissingBlocks):
            return plan(await self._directory(), without | {*self._avoided()})
        known, avoided = await self._look(), self._avoided()
        for count in range(len(avoided), 0, -1):
            with contextlib.suppress(MissingBlocks):
                return plan(known, without | {*avoided[:count]})
        return plan(known, without)

    def run(self, chain: Chain, steps: list[Step]) -> list[Result]:
        """Send ``steps`` along ``chain`` and wait for their results."""
        try:
            if len(steps) == 1:
                return [self._loop.call(lambda reply: chain.run_one(steps[0], reply.settle))]
            return self._loop.run(chain.run(steps))
        except KeyboardInterrupt:
            self._loop.call_soon(chain.abandon)
            raise

    def close_later(self, chain: Chain) -> None:
        """End a session without waiting for it."""
        self._loop.submit(self._close_chain(chain))

    async def _close_chain(self, chain: Chain) -> None:
        await chain.close()
        self._chains.discard(chain)

    def close(self) -> None:
        """Leave the swarm; doing so twice is fine."""
        self._finalizer()


@dataclass(frozen=True, slots=True)
class _Avoided:
    until_s: float
    """Of the monotonic clock."""
    count: int
    """How often it was left out."""
    failed_s: float
    """When it failed last."""


class _SessionPlanner:
    """A network as one session's repairs see it."""

    def __init__(self, network: Network, *, needs_ends: bool) -> None:
        self._network = weakref.proxy(network)  # Sessions do not keep a client alive that nobody holds any more.
        self._needs_ends = needs_ends

    async def plan(self, start: int, end: int, without: Set[str]) -> tuple[Stage, ...]:
        """Return stages that cover the blocks ``[start, end)``."""
        stages: tuple[Stage, ...] = await self._network.plan(start, end, without, needs_ends=self._needs_ends)
        return stages

    def failed(self, peer_id: str, reason: Exception) -> None:
        """Leave a peer out for a while."""
        self._network.failed(peer_id, reason)

    def tell(self, repaired: Repaired) -> None:
        """Tell whoever wants to know."""
        self._network.on_repaired(repaired)


def _log_repaired(repaired: Repaired) -> None:
    logger.info(
        "%s took the place of %s within %.0f ms; %d positions replayed%s",
        ", ".join(repaired.replaced_by),
        ", ".join(repaired.lost),
        1000 * repaired.seconds,
        repaired.replayed_tokens,
        "" if repaired.same_drift_class else "; they compute differently, so tokens may differ",
    )


def _forget_outcome(looking: asyncio.Task[Directory]) -> None:
    if not looking.cancelled():
        looking.exception()


def _avoid_s(reason: Exception, count: int) -> float:
    """Return for how long a server is left out that has failed so often, s: what it asks for, or longer each time."""
    if isinstance(reason, Refused) and reason.retry_after_s:
        return min(reason.retry_after_s, _AVOID_S)
    return min(_AVOID_S * 2.0 ** (count - 1), _MAX_AVOID_S)


def _leave(loop: LoopThread, exits: contextlib.AsyncExitStack, chains: set[Chain]) -> None:
    async def leave() -> None:
        await asyncio.gather(*(chain.close() for chain in chains), return_exceptions=True)
        await exits.aclose()

    if loop.is_running and threading.main_thread().is_alive():
        loop.run(leave())
        loop.stop()
