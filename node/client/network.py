"""The swarm as a client's model uses it: looks the directory up, plans routes, opens chains, from a synchronous thread.

Owns the loop thread and the ``Swarm`` in it. A server that refuses or cannot be reached is left out of the next plan
for a while; what happens when a stage is lost in mid-session is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Self

from dht.directory import Directory, read_directory
from dht.identity import Identity
from dht.parameters import parse_join
from dht.swarm import Swarm
from node.client.chain import Chain, SessionShape, StageFailed, open_chain
from node.client.loop_thread import LoopThread
from node.client.route import Route, plan_route
from node.client.thin_terms import ThinTerms
from node.errors import MissingBlocks, Refused, UserError
from node.wire import Result, Step

_AVOID_S = 30.0
"""How long a server that failed to open a stage is left out of routes, s."""
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
        self._avoid: dict[str, float] = {}
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
        return self._loop.run(self._directory())

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
        return await read_directory(self._swarm, self._manifest, time.time())

    async def _open(self, shape: SessionShape) -> Chain:
        last_failure: StageFailed | None = None
        failed: set[str] = set()
        needs_ends = shape.thin is not None
        for _ in range(_MAX_OPEN_ATTEMPTS):
            now = time.monotonic()
            self._avoid = {peer: until for peer, until in self._avoid.items() if until > now}
            try:
                avoid = failed | self._avoid.keys()
                route = plan_route(await self._directory(), self._num_blocks, avoid, needs_ends=needs_ends)
            except MissingBlocks:
                break
            try:
                return await open_chain(self._swarm, route, shape, step_timeout_s=self._step_timeout_s)
            except StageFailed as failure:
                if isinstance(failure.reason, Refused) and failure.reason.code in _HOPELESS_CODES:
                    raise failure.reason from failure
                last_failure = failure
                failed.add(failure.stage.peer_id)
                self._avoid[failure.stage.peer_id] = now + _avoid_s(failure.reason)
        if last_failure is not None:  # It says more than that blocks are missing once its server is left out.
            raise last_failure
        route = plan_route(await self._directory(), self._num_blocks, needs_ends=needs_ends)
        return await open_chain(self._swarm, route, shape, step_timeout_s=self._step_timeout_s)

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


def _avoid_s(reason: Exception) -> float:
    """Return for how long a server is left out of other sessions: as long as it asks for, or as one that is gone."""
    asked_s = reason.retry_after_s if isinstance(reason, Refused) else 0.0
    return min(asked_s or _AVOID_S, _AVOID_S)


def _leave(loop: LoopThread, exits: contextlib.AsyncExitStack, chains: set[Chain]) -> None:
    async def leave() -> None:
        await asyncio.gather(*(chain.close() for chain in chains), return_exceptions=True)
        await exits.aclose()

    if loop.is_running and threading.main_thread().is_alive():
        loop.run(leave())
        loop.stop()
