"""The swarm as a client's model uses it: looks the directory up, plans routes, opens chains, from a synchronous thread.

Owns the loop thread and the ``Swarm`` in it. What is known of the servers, and which routes follow, is ``outlook``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from dht.directory import Directory
from dht.parameters import parse_join, split_address
from dht.standing.board import anchors_of
from dht.swarm import Swarm
from node.client.asked_judge import AskedJudge
from node.client.audit_book import AuditBook, AuditResult, Outcome
from node.client.audit_draw import nobody
from node.client.audit_publisher import AuditPublisher
from node.client.auditor import AskOthers, Auditor, Judge, attending_of
from node.client.chain import Chain, SessionShape, StageFailed, open_chain
from node.client.dealings import Dealings
from node.client.explain import Explanation, explain
from node.client.loop_thread import LoopThread
from node.client.offers import FASTEST, Policy
from node.client.outlook import Outlook, Wanted
from node.client.rank_watch import RankWatch
from node.client.receipt_book import enter_swarm, open_dealings
from node.client.recheck import Rechecked
from node.client.repair import Repaired, unreachable
from node.client.route import Route, Stage
from node.client.shadow import Shadowed, ShadowParts, ShadowTraffic
from node.client.shadow_budget import ShadowBudget
from node.client.thin_terms import ThinTerms
from node.errors import MissingBlocks, Refused, StageAtFault, UnavailableError, UserError
from node.wire import Result, Step

T = TypeVar("T")

logger = logging.getLogger(__name__)
user_logger = logging.getLogger("efedllm")
"""Says what concerns the user, under the name that the user knows."""

_MAX_OPEN_ATTEMPTS = 8
_OPEN_PATIENCE_S = 75.0
"""How long servers that cannot be reached are waited for before a session that has not begun is given up, s. Who is
still announced then has said so since it was first tried; and p2pd shuns addresses that failed for some of it."""
_PAUSE_BETWEEN_TRIES_S = 0.5
_LEAVE_S = 5.0
"""What was begun has so long to be given up."""
_AUDITS_S = 5.0
"""A client that leaves waits so long for audits that are under way, s."""
_AUDIT_PER_MILLE = 20
"""Where a swarm has no parameters that say otherwise."""
_SHADOW_TIMEOUT_S = 30.0
"""A route may stay silent for so long in a step of a duplicate, s."""
_PASSING_CODES = frozenset({"next_unreachable", "draining"})
"""Refusals that say that some server has just gone."""
_HOPELESS_CODES = frozenset({"too_long", "bad_open", "unsupported"})
"""Refusals that every other server would repeat."""


class Network:
    """A connected client. Made by ``connect``; ended by ``close``, or with the process."""

    def __init__(
        self, loop: LoopThread, swarm: Swarm, exits: contextlib.AsyncExitStack, *, manifest: bytes, num_blocks: int,
        step_timeout_s: float, policy: Policy = FASTEST, dealings: Dealings | None = None, hidden_size: int = 0,
        watch: RankWatch | None = None, publisher: AuditPublisher | None = None,
        audit_per_mille: int | None = None, judge: Judge | None = None, ask: AskOthers | None = None,
        shadow_per_mille: int = 0,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._swarm = swarm
        self._manifest = manifest
        self._num_blocks = num_blocks
        self._step_timeout_s = step_timeout_s
        self._dealings = dealings
        self._publisher = publisher
        self._hidden_size = hidden_size
        self.outlook = Outlook(swarm, manifest, num_blocks, policy)
        """What is known of the servers; only the loop's thread uses it."""
        exits.push_async_callback(self.outlook.close)
        if watch is not None:
            loop.call_soon(lambda: watch.listen(self.outlook.know))
        self.on_repaired: Callable[[Repaired], None] = _log_repaired
        """Called in the loop's thread when a session has got other stages for lost ones."""
        self.on_rechecked: Callable[[Rechecked], None] = _warn_of_rechecked
        """Called in the loop's thread when what a server has not signed for was run again elsewhere."""
        self.on_audited: Callable[[AuditResult], None] = _log_audited
        """Called in the loop's thread with what came of each audit."""
        self.on_shadowed: Callable[[Shadowed], None] = _log_shadowed
        """Called in the loop's thread with what came of each duplicate that a newcomer was given."""
        audited = _teller(weakref.ref(self), Network._audited)
        # What nobody runs again shows little: then opening more of it is not worth it.
        is_watched = self.outlook.is_watched if audit_per_mille is None and (judge or ask) else nobody
        per_mille = _per_mille(swarm, audit_per_mille)
        self._auditor = Auditor(swarm.dial, audited, per_mille, judge, ask=ask, is_watched=is_watched)
        self.last_route: Route | None = None
        """The route of the session opened last; None: none was, or the last one could not be."""
        self._chains: set[Chain] = set()
        """Sessions that are open; only the loop's thread touches it."""
        parts = ShadowParts(
            outlook=self.outlook,
            open=partial(_open_shadow, swarm, dealings, min(step_timeout_s, _SHADOW_TIMEOUT_S)),
            dial=swarm.dial,
            judge=judge,
            book=self._auditor.book,
            is_busy=partial(_is_waited_for, self._chains),
            audited=audited,
            tell=_teller(weakref.ref(self), Network._shadowed),
            ask=ask,
        )
        budget = ShadowBudget(shadow_per_mille if dealings is not None else 0)  # Who signs for nothing helps nobody.
        self._shadow = ShadowTraffic(parts, budget, num_blocks)
        self._finalizer = weakref.finalize(self, _leave, loop, exits, self._chains, self._auditor, self._shadow)

    @property
    def audits(self) -> AuditBook:
        """What came of audits so far."""
        return self._auditor.book

    @classmethod
    def connect(
        cls, *, manifest: bytes, num_blocks: int, join: str | None, initial_peers: Sequence[str],
        step_timeout_s: float, policy: Policy = FASTEST, hidden_size: int = 0, home: Path | None = None,
        signs: bool = False, name: str = "", anchors: Sequence[str] = (), audit_per_mille: int | None = None,
        judge: Judge | None = None, asks_anchors: bool = False, shadow_per_mille: int = 0,
    ) -> Self:  # fmt: skip
        """Join a swarm as a client that serves nothing.

        Args:
            manifest: identity of the model, 32 bytes.
            num_blocks: blocks of the model.
            join: join code or multiaddrs.
            initial_peers: multiaddrs, instead of ``join``.
            step_timeout_s: how long a route may stay silent in one step, s.
            policy: what routes shall be best at, and who may be used.
            hidden_size: of the model.
            home: where the client's identity and ledger are kept; None: they live as long as this object.
            signs: whether to sign for what servers do, which most of them demand.
            name: of the model, for the ledger's readers.
            anchors: peer ids whose trust counts for this client; none: those of the swarm.
            audit_per_mille: share of what is signed for that is audited, thousandths; None: as the swarm has it.
            judge: judges what audits open; None: nobody does.
            asks_anchors: whether anchors are asked to judge it where there is no judge, or it cannot.
            shadow_per_mille: share of what is consumed that newcomers may be given a second time, thousandths.

        Raises:
            UserError: neither ``join`` nor ``initial_peers`` is given.
            DhtError: the code is damaged, or nobody answers.
        """
        text = join or " ".join(initial_peers)
        if not text:
            raise UserError("No swarm is named; pass join='CODE' or initial_peers=[...].")
        code = parse_join(text)
        loop = LoopThread()
        exits, has_entered = contextlib.AsyncExitStack(), asyncio.Event()

        shunned: dict[str, float] = {}

        async def enter() -> tuple[Swarm, RankWatch, Dealings | None, AuditPublisher | None]:
            try:
                swarm, identity = await enter_swarm(exits, code, home if signs else None)
                bootstraps = [split_address(address)[1] for address in code.addresses]
                watch = await exits.enter_async_context(RankWatch(swarm, bootstraps, anchors, home))
                if (attending := attending_of(judge)) is not None:
                    exits.push_async_callback(_cancelled, asyncio.create_task(attending.attend(swarm, anchors)))
                if not signs:
                    return swarm, watch, None, None
                dealings = await open_dealings(exits, swarm, identity, home, manifest, name)
                shunned.update(await dealings.distrusted())
                if identity.path is None:  # Nobody will be this client again, so its word counts for nothing.
                    return swarm, watch, dealings, None
                publisher = await exits.enter_async_context(AuditPublisher(swarm, identity, dealings.rules))
                return swarm, watch, dealings, publisher
            finally:
                has_entered.set()

        async def leave() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(has_entered.wait(), _LEAVE_S)
            await exits.aclose()

        try:
            swarm, watch, dealings, publisher = loop.run(enter())
        except BaseException:
            loop.run(leave())
            loop.stop()
            raise
        made = cls(
            loop, swarm, exits, manifest=manifest, num_blocks=num_blocks, step_timeout_s=step_timeout_s, policy=policy,
            dealings=dealings, hidden_size=hidden_size, watch=watch, publisher=publisher,
            audit_per_mille=audit_per_mille, judge=judge, shadow_per_mille=shadow_per_mille,
            ask=_asked(swarm, dealings, anchors) if asks_anchors else None,
        )  # fmt: skip
        made._shun(shunned)
        return made

    def directory(self) -> Directory:
        """Look up who serves the model now."""
        return self._loop.run(self.outlook.look())

    def route(self) -> Route:
        """Plan the route that a session would take now, without opening one.

        Raises:
            MissingBlocks: some blocks have no server that can be used.
        """
        return self._loop.run(self.outlook.plan(Wanted(0, self._num_blocks, needs_ends=False, is_new=True)))

    def explain(self) -> Explanation | None:
        """Say of every server why the last route that was planned for a new session takes it, or does not.

        Returns:
            None before the first session.
        """
        question = self.outlook.last_question
        return explain(question, self.last_route) if question is not None else None

    def forget(self) -> None:
        """Forget which servers failed, and look at the swarm anew before the next plan."""
        self._loop.call_soon(self.outlook.forget)

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
        shape = SessionShape(self._manifest, batch, left_padding, max_length, codec, self._hidden_size, thin)
        self.last_route = None
        chain = self._loop.run(self._open_and_keep(shape))
        self.last_route = chain.route
        return chain

    async def _open_and_keep(self, shape: SessionShape) -> Chain:
        chain = await self._open(shape)
        chain.trace = self._shadow.opened(shape)
        self._chains.add(chain)
        return chain

    # What ``repair.Planner`` asks.

    async def plan(self, start: int, end: int, without: Set[str], *, needs_ends: bool) -> tuple[Stage, ...]:
        """Return stages that cover the blocks ``[start, end)``, none of them a peer of ``without``.

        Raises:
            MissingBlocks: some blocks have no server.
        """
        return (await self.outlook.plan(Wanted(start, end, needs_ends, frozenset(without)))).stages

    def failed(self, peer_id: str, reason: Exception) -> None:
        """Leave a peer out of routes for a while; for long, also by later clients, if it did not sign as it should."""
        self.outlook.failed(peer_id, reason)
        if isinstance(reason, StageAtFault) and self._dealings is not None:
            self._dealings.distrust(peer_id)
            self.outlook.shun(peer_id, self._dealings.distrust_s)

    def _shun(self, peers: Mapping[str, float]) -> None:
        """Leave out for so many seconds whom earlier clients of this identity did not get signatures from."""
        for peer_id, left_s in peers.items():
            self.outlook.shun(peer_id, left_s)

    def _audited(self, result: AuditResult) -> None:
        """Act on an audit: who has failed is not used any more, neither now nor later."""
        if self._publisher is not None:
            self._publisher.enter(result)
        if result.outcome is Outcome.FAIL:
            self.outlook.distrust(result.owner, result.why)
            for chain in list(self._chains):
                chain.distrust(StageAtFault(result.owner, f"has failed an audit: {result.why}"))
        elif result.owner and self._auditor.book.is_elusive(result.owner):
            self.outlook.failed(result.owner, UnavailableError(f"audits come to nothing: {result.why}"))
        self.on_audited(result)

    def _shadowed(self, shadowed: Shadowed) -> None:
        self.on_shadowed(shadowed)

    async def _open(self, shape: SessionShape) -> Chain:
        """Open a session; where servers that are announced cannot be reached, try again for a while: they may be back.

        Raises:
            MissingBlocks: some blocks have no server, or none that can be reached.
            StageFailed: those that there are refuse.
        """
        until_s = time.monotonic() + min(_OPEN_PATIENCE_S, self._step_timeout_s)
        failure: StageFailed | None = None
        is_told = False
        while True:
            try:
                return await self._try_to_open(shape)
            except StageFailed as error:
                failure = error
            except MissingBlocks:
                if failure is None:
                    raise
            if not _may_come_back(failure):
                raise failure
            if time.monotonic() >= until_s:
                raise unreachable([failure.stage], failure.reason) from failure
            if not is_told:
                logger.warning("%s It is tried again for %.0f s.", failure, until_s - time.monotonic())
                is_told = True
            await asyncio.sleep(_PAUSE_BETWEEN_TRIES_S)

    async def _try_to_open(self, shape: SessionShape) -> Chain:
        last_failure: StageFailed | None = None
        wanted = Wanted(0, self._num_blocks, shape.thin is not None, is_new=True)
        planner = _SessionPlanner(self, needs_ends=wanted.needs_ends)
        for _ in range(_MAX_OPEN_ATTEMPTS):
            try:
                route = await self.outlook.plan(wanted)
            except MissingBlocks:
                if last_failure is None:
                    raise
                break  # The failure says more than that blocks are missing once its server is left out.
            try:
                return await open_chain(
                    self._swarm,
                    route,
                    shape,
                    step_timeout_s=self._step_timeout_s,
                    planner=planner,
                    dealings=self._dealings,
                    auditor=self._auditor,
                )
            except StageFailed as failure:
                if isinstance(failure.reason, Refused) and failure.reason.code in _HOPELESS_CODES:
                    raise failure.reason from failure
                last_failure = failure
                wanted = replace(wanted, without=wanted.without | {failure.stage.peer_id})
                self.outlook.failed(failure.stage.peer_id, failure.reason)
        assert last_failure is not None
        raise last_failure

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

    def settle(self, timeout_s: float) -> bool:
        """End all sessions and wait until nothing of them is left to audit, for a while; say whether that is so."""

        async def settled() -> None:
            await asyncio.gather(*(chain.close() for chain in list(self._chains)), return_exceptions=True)
            await self._auditor.drained()

        try:
            self._loop.run(asyncio.wait_for(settled(), timeout_s))
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Leave the swarm; doing so twice is fine."""
        self._finalizer()


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

    def rechecked(self, rechecked: Rechecked) -> None:
        """Tell whoever wants to know."""
        self._network.on_rechecked(rechecked)


def _may_come_back(failure: StageFailed) -> bool:
    return not isinstance(failure.reason, Refused) or failure.reason.code in _PASSING_CODES


def _log_repaired(repaired: Repaired) -> None:
    logger.info(
        "%s took the place of %s within %.0f ms; %d positions replayed%s",
        ", ".join(repaired.replaced_by),
        ", ".join(repaired.lost),
        1000 * repaired.seconds,
        repaired.replayed_tokens,
        "" if repaired.same_drift_class else "; they compute differently, so tokens may differ",
    )


def _warn_of_rechecked(rechecked: Rechecked) -> None:
    is_bad = rechecked.num_different or rechecked.why_not
    user_logger.log(logging.WARNING if is_bad else logging.INFO, "%s", rechecked.in_words())


def _log_audited(result: AuditResult) -> None:
    if result.outcome is Outcome.FAIL:
        user_logger.warning(
            "An audit has found the server %s at fault (%s); it is not used any more. %s",
            result.owner,
            result.why,
            "Nothing of that session was in an answer."
            if result.is_shadow
            else "Do not trust the answer of that session, and ask again.",
        )
    else:
        logger.info("audit of %s: %s %s", result.peer_id, result.outcome.value, result.why)


def _log_shadowed(shadowed: Shadowed) -> None:
    logger.info(
        "shadow traffic: %d positions through %s (blocks %d:%d): %s, %s",
        shadowed.num_positions,
        shadowed.peer_id,
        shadowed.start,
        shadowed.end,
        shadowed.outcome.value,
        shadowed.why,
    )


def _teller(network: weakref.ref[Network], take: Callable[[Network, T], None]) -> Callable[[T], None]:
    """Return what tells a network of something without keeping it alive."""

    def tell(what: T) -> None:
        known = network()
        if known is not None:
            take(known, what)

    return tell


async def _open_shadow(
    swarm: Swarm, dealings: Dealings | None, step_timeout_s: float, route: Route, shape: SessionShape, auditor: Auditor
) -> Chain:
    return await open_chain(swarm, route, shape, step_timeout_s=step_timeout_s, dealings=dealings, auditor=auditor)


def _is_waited_for(chains: Set[Chain]) -> bool:
    return any(chain.is_waiting for chain in chains)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _per_mille(swarm: Swarm, asked: int | None) -> int:
    if asked is not None:
        return asked
    return swarm.parameters.audit_per_mille if swarm.parameters is not None else _AUDIT_PER_MILLE


def _asked(swarm: Swarm, dealings: Dealings | None, anchors: Sequence[str]) -> AskOthers | None:
    if dealings is None:  # Nobody judges for those who do not sign for it.
        return None
    return AskedJudge(swarm.dial, dealings, lambda: anchors or anchors_of(swarm.parameters))


def _leave(
    loop: LoopThread, exits: contextlib.AsyncExitStack, chains: set[Chain], auditor: Auditor, shadow: ShadowTraffic
) -> None:
    async def leave() -> None:
        await asyncio.gather(shadow.close(), *(chain.close() for chain in chains), return_exceptions=True)
        await auditor.close(_AUDITS_S)
        await exits.aclose()

    if loop.is_running and threading.main_thread().is_alive():
        loop.run(leave())
        loop.stop()
