"""A session through a route: steps in at the first stage, results out at the last, and another stage for a lost one.

Runs in the client's event loop and touches payloads as bytes. It knows nothing of transformers, nor of what a step
means; ``history`` decides what to send, ``repair`` what takes a lost stage's place.

A stage is lost when its stream ends, when a neighbour says so, when it breaks the protocol, or when it gives no sign of
life after a silence. Steps wait meanwhile: what has been sent is in a log, here for the first stage and at every stage
for the one behind it, and the answers come when the new stage has caught up. A stage that says that it leaves is
replaced in the same way between two steps, and serves until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from dht.errors import UnavailableError as PeerUnavailable
from dht.swarm import Swarm
from node.client.auditor import Auditor
from node.client.contract import Handed, SessionContract
from node.client.dealings import Dealings
from node.client.recheck import Doubt, Rechecking, doubt
from node.client.repair import Planner, Repaired, open_replacement, rehearse, unreachable
from node.client.route import Route
from node.client.session_audits import SessionAudits, plan_audits
from node.client.shadow_trace import ShadowTrace
from node.client.silence import Silence
from node.client.stage_link import (
    RETRYABLE_WORDS,
    SessionShape,
    StageFailed,
    StageLink,
    open_links,
    with_rows,
)
from node.errors import (
    CannotSign,
    LocalError,
    NodeError,
    Refused,
    SessionError,
    StageAtFault,
    StageLost,
    UnavailableError,
)
from node.step_log import StepLog
from node.transport import FrameStream
from node.wire import PROTOCOL, Checkpoint, Drain, Frame, Result, Step
from node.wire import StageLost as StageLostFrame

__all__ = ["Chain", "SessionShape", "StageFailed", "open_chain"]

logger = logging.getLogger(__name__)

Settle: TypeAlias = Callable[[Result | None, NodeError | None], None]

_PAUSE_BETWEEN_TRIES_S = 0.25
_PAUSE_BETWEEN_MOVES_S = 1.0
"""A stage that leaves still serves: there is time. Twice as long with every try."""
_MAX_PAUSE_BETWEEN_MOVES_S = 15.0
_LAST_SIGNATURES_S = 1.0
"""A stage that leaves has so long to ask for them."""
_REPAIR_GRACE_S = 5.0
"""So much longer than a step may take a repair may: it knows better what is missing."""
_RECHECK_S = 20.0
"""A session that ends waits so long for what is run again."""
_LOOK_S = 0.02
_LEAVES = Refused("draining", "It leaves.", retryable=True, retry_after_s=30.0)
_MAX_REFUSALS = 2
"""One stage that refuses a step may be wrong, or lie; when another does too, the step is."""


class Chain:
    """An open session. Made by ``open_chain``; ended by ``close``.

    Args:
        swarm: reaches stages.
        session: its id.
        shape: what every stage was told.
        links: the open stages, in order.
        push: the stream on which steps go to the first stage.
        step_timeout_s: how long a step, or a repair, may take.
        planner: finds stages for lost ones; None: a lost stage ends the session.
        dealings: makes offers to new stages; None: nothing is signed for.
        contract: what the stages have agreed to.
        audits: what is told of the session to those who audit it; None: nobody does.
    """

    def __init__(
        self,
        swarm: Swarm,
        session: bytes,
        shape: SessionShape,
        links: Sequence[StageLink],
        push: FrameStream,
        *,
        step_timeout_s: float,
        planner: Planner | None = None,
        dealings: Dealings | None = None,
        contract: SessionContract | None = None,
        audits: SessionAudits | None = None,
    ) -> None:
        self.session = session
        self.trace: ShadowTrace | None = None
        """Told of every step that is answered; None: nobody is."""
        self._audits = audits
        self._dealings = dealings
        self._contract = contract
        self._swarm = swarm
        self._shape = shape
        self._links = list(links)
        self._push: FrameStream | None = push
        self._step_timeout_s = step_timeout_s
        self._planner = planner
        self._log: StepLog | None = None
        self._answered = 0
        self._num_refusals = 0
        """Refusals since the last answer of stages that do not expect the same to succeed elsewhere."""
        self._waiting: deque[Step] = deque()
        """Steps that were given and are not answered."""
        self._settle: Settle | None = None
        self._results: asyncio.Queue[Result | NodeError] = asyncio.Queue()
        self._is_running = False
        self._failure: NodeError | None = None
        self._handing = asyncio.Lock()
        """Held while steps are sent in order, and by a repair, so that none is sent meanwhile."""
        self._lost: dict[StageLink, NodeError] = {}
        self._starved: set[StageLink] = set()
        """Lost through no fault of theirs."""
        self._has_lost = asyncio.Event()
        self._leaving: set[StageLink] = set()
        """Stages that have asked for somebody to take their place."""
        self._moving: asyncio.Task[None] | None = None
        self._has_news = asyncio.Event()
        """Set by every answer, every checkpoint and every loss."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        """Of links that are not used any more: their stages may wait for a voucher that does not come."""
        self._rechecking = Rechecking(partial(self._open_elsewhere, planner), planner.rechecked) if planner else None
        """Runs again what was not signed for."""
        self._closing: asyncio.Task[None] | None = None
        self._is_repairing = False
        self._silence = Silence(time.monotonic())
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at_look = 0
        """Steps that had been sent when stages were last asked for signs of life."""
        self._past_bytes = [0, 0]
        for link in self._links:
            link.watch(self._take, self._lose)

    @property
    def route(self) -> Route:
        """Where the session runs now."""
        return Route(tuple(link.stage for link in self._links))

    @property
    def is_waiting(self) -> bool:
        """Whether steps were given that are not answered."""
        return bool(self._waiting)

    @property
    def bytes_out(self) -> int:
        """Bytes sent to stages, steps included."""
        pushed = self._push.bytes_out if self._push else 0
        return self._past_bytes[0] + pushed + sum(link.bytes_out for link in self._links)

    @property
    def bytes_in(self) -> int:
        """Bytes received from stages, results included."""
        return self._past_bytes[1] + sum(link.bytes_in for link in self._links)

    async def run(self, steps: Sequence[Step]) -> list[Result]:
        """Send ``steps`` and return their results in order; several steps are in flight at once.

        Raises:
            StageLost: a stage is gone or silent, and nothing takes its place.
            MissingBlocks: nobody holds the blocks of a lost stage.
            Refused: a stage ended the session, with its reason.
            SessionError: a stage broke the protocol.
            LocalError: other steps of this session are still in flight.
        """
        if self._is_busy:
            raise _overlap()
        self._is_running = True
        self._waiting.extend(steps)
        self._begin_waiting()
        sending = asyncio.create_task(self._send(steps))
        try:
            return [await self._receive() for _ in steps]
        finally:
            self._is_running = False
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def run_one(self, step: Step, settle: Settle) -> None:
        """Send one step; call ``settle(result, None)`` or ``settle(None, error)``. The decode path: without a task.

        The error is a LocalError when other steps of this session are still in flight.
        """
        if self._is_busy:
            settle(None, _overlap())
            return
        if self._failure is not None:
            settle(None, self._failure)
            return
        self._settle = settle
        self._waiting.append(step)
        self._begin_waiting()
        if self._push is None or self._handing.locked():
            self._spawn(self._send([step]))
            return
        step = self._note(step)
        try:
            self._push.write(step)
        except UnavailableError as error:
            self._lose(self._links[0], error)

    @property
    def _is_busy(self) -> bool:
        return self._is_running or self._settle is not None

    def _begin_waiting(self) -> None:
        self._silence.begin(time.monotonic())
        if self._timer is None:
            self._look_later(self._silence.bound_s)
        if self._lost:
            self._begin_repair()

    def _note(self, step: Step) -> Step:
        """Put a step into the log; return it as it is to be sent."""
        if self._log is None:
            shape = self._shape
            self._log = StepLog(self.session, step.codec, step.shape[2], shape.batch, shape.max_length)
            if self._audits is not None:
                self._audits.begun(self._log)
        if self._contract is not None:
            step = self._contract.sent(step)
        self._log.append(step)
        return step

    async def _send(self, steps: Sequence[Step]) -> None:
        for step in steps:
            async with self._handing:
                if self._failure is not None:
                    return
                noted = self._note(step)
                if self._push is None:
                    continue
                try:
                    await self._push.send(noted)
                except UnavailableError as error:
                    self._lose(self._links[0], error)

    async def _receive(self) -> Result:
        if self._failure is not None and self._results.empty():
            raise self._failure
        outcome = await self._results.get()
        if isinstance(outcome, NodeError):
            raise outcome
        return outcome

    def abandon(self) -> None:
        """Make every later step fail: the caller has gone away in the middle of one."""
        self._fail(StageLost("The session was interrupted in the middle of a step; open a new one."))

    # What stages say.

    def _take(self, link: StageLink, frame: Frame) -> None:
        match frame:
            case Result() if link is self._links[-1] and frame.session == self.session:
                self._answer(link, frame)
            case StageLostFrame() if frame.session == self.session:
                self._accuse(link, frame.peer)
            case Drain() if frame.session == self.session:
                self._leave(link)
            case Checkpoint() if frame.session == self.session and link.deal is not None:
                self._sign(link, frame)
            case _:
                raise SessionError(f"The stage {link.stage} sent a {type(frame).__name__} frame out of place.")

    def _accuse(self, link: StageLink, peer_id: str) -> None:
        """Note as lost whom a stage of the route says to be; who stands behind it says that it does wrong."""
        if link not in self._links:
            return
        for place, other in enumerate(list(self._links)):
            if other.stage.peer_id == peer_id:
                if place < self._links.index(link):
                    self._doubt(other, is_at_fault=True)
                self._lose(other, StageLost(f"The stage {other.stage} is gone; {RETRYABLE_WORDS}."))

    def _answer(self, link: StageLink, result: Result) -> None:
        if not self._waiting or not self._is_answer(result, self._waiting[0]):
            raise SessionError(f"The stage {link.stage} answered another step than it was asked.")
        step = self._waiting.popleft()
        self._answered += 1
        self._num_refusals = 0
        self._shape = with_rows(self._shape, step.rows)
        self._silence.answered(time.monotonic(), alone=self._settle is not None)
        self._has_news.set()
        fault = self._checked(step, result)
        if self.trace is not None and fault is None:
            self.trace.answered(step, result)
        self._deliver(result)
        if fault is not None:
            self._blame(fault)
        if self._contract is not None and self._contract.is_due:
            self._lose_overdue()

    def _checked(self, step: Step, result: Result) -> StageAtFault | None:
        try:
            if self._contract is not None:
                self._contract.answered(step, result)
        except StageAtFault as fault:
            return fault
        return None

    def _sign(self, link: StageLink, frame: Checkpoint) -> None:
        """Check what a stage asks a signature for, and give it."""
        contract, other = self._contract, None
        if contract is None or link.deal is None:
            return
        try:
            if link in self._links:
                answer, other = contract.checkpoint(self._links.index(link), frame.body)
            else:
                answer = contract.last_words(link.deal, frame.body)
        except StageAtFault as fault:
            self._blame(fault)
            return
        except CannotSign as error:  # No other stage would be served better.
            self._fail(error)
            return
        self._has_news.set()
        if answer is not None:
            link.tell(answer)
            if self._audits is not None:
                self._audits.signed()
        if other is not None:
            self._blame(other)

    def distrust(self, fault: StageAtFault) -> None:
        """Go on without a stage that an audit has found at fault, here or in another session."""
        if self._planner is not None and self._closing is None:
            self._blame(fault)

    def _blame(self, fault: StageAtFault) -> None:
        for link in list(self._links):
            if link.stage.peer_id == fault.peer_id:
                self._doubt(link, is_at_fault=True)
                self._lose(link, fault)

    def _lose_overdue(self) -> None:
        """Note stages as lost that should have asked for signatures and have not."""
        for place in self._contract.overdue() if self._contract is not None else ():
            link = self._links[place]
            self._doubt(link)
            self._lose(link, StageAtFault(link.stage.peer_id, "does not sign for what it does in time"))

    def _doubt(self, link: StageLink, *, is_at_fault: bool = False) -> None:
        """Have what a stage has not signed for as it should run again elsewhere, and compared."""
        if self._contract is None or self._rechecking is None or self._log is None or link in self._lost:
            return
        kept = self._contract.unsigned(self._links.index(link), is_at_fault=is_at_fault)
        if kept and not self._rechecking.is_busy:
            shape, history = self._shape, self._log.replay(self._answered, 0)
            self._rechecking.begin(doubt(link.stage.peer_id, kept, history, shape.codec, shape.left_padding))

    async def _open_elsewhere(self, planner: Planner, made: Doubt) -> Chain:
        """Open a session for what is in doubt, without the stage that has not signed for it."""
        shape = replace(self._shape, max_length=made.end)
        route = Route(await planner.plan(0, self._links[-1].stage.end, {made.peer_id}))
        patience_s = self._step_timeout_s
        return await open_chain(self._swarm, route, shape, step_timeout_s=patience_s, dealings=self._dealings)

    def _is_answer(self, result: Result, step: Step) -> bool:
        if result.position != step.position:
            return False
        if self._shape.thin is not None:
            return self._shape.thin.is_answer(result, step)
        return result.shape == step.shape and result.codec == step.codec

    def _deliver(self, outcome: Result | NodeError) -> None:
        if self._settle is None:
            self._results.put_nowait(outcome)
            return
        settle, self._settle = self._settle, None
        if isinstance(outcome, NodeError):
            settle(None, outcome)
        else:
            settle(outcome, None)

    def _fail(self, error: NodeError) -> None:
        """End the session for its caller: the failure is its last outcome."""
        if self._failure is None:
            self._failure = error
            self._has_news.set()
            self._deliver(error)

    def _lose(self, link: StageLink, error: NodeError) -> None:
        """Note that a stage is lost; another takes its place as soon as a step waits for it."""
        if link not in self._links or link in self._lost:
            return
        self._lost[link] = error
        if self._audits is not None and self._closing is None:
            self._audits.lost(link.stage.peer_id)
        self._has_lost.set()
        self._has_news.set()
        self._num_refusals += isinstance(error, Refused) and not error.retryable
        if self._planner is None or self._num_refusals >= _MAX_REFUSALS:
            self._fail(error)
        elif self._waiting:
            self._begin_repair()

    # Silence.

    @property
    def _waited_s(self) -> float:
        return self._silence.waited_s(time.monotonic())

    def _look_later(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Look whether something has come since the last time; ask the stages for a sign of life if not."""
        self._timer = None
        if not self._waiting or self._failure is not None:
            return
        self._lose_overdue()
        bound_s, silent_s = self._silence.bound_s, self._silence.lasts_s(time.monotonic())
        if self._is_repairing and self._waited_s >= self._step_timeout_s + _REPAIR_GRACE_S:
            self._fail(StageLost(f"Lost stages were not replaced within {self._waited_s:.0f} s; {RETRYABLE_WORDS}."))
        elif self._is_repairing or silent_s < bound_s:
            self._look_later(max(0.05, bound_s - silent_s))
        elif self._waited_s >= self._step_timeout_s:
            self._fail(StageLost(f"No stage answered within {self._step_timeout_s:.0f} s; {RETRYABLE_WORDS}."))
        elif self._planner is not None:
            self._spawn(self._ask_for_signs())
        else:  # Nothing would take a silent stage's place.
            self._look_later(min(bound_s, self._step_timeout_s - self._waited_s))

    async def _ask_for_signs(self) -> None:
        links = list(self._links)
        before, sent_before = [link.alive for link in links], self._sent_at_look
        self._sent_at_look = self._log.count if self._log else 0
        await self._probe(links)
        # Idle at two looks, though more had been handed on to it at the first: what lies before it is broken.
        handed_on = [sent_before, *(sign.handed_on if sign else 0 for sign in before)]
        for link, last, expected in zip(links, before, handed_on, strict=False):
            now = link.alive
            if now is not None and last is not None and last.taken == now.taken == now.handed_on < expected:
                self._lose(link, StageLost(f"The stage {link.stage} does not get what it is sent; {RETRYABLE_WORDS}."))
        if self._timer is None:
            self._look_later(self._silence.bound_s)

    async def _probe(self, links: Sequence[StageLink]) -> None:
        """Ask stages for a sign of life; those that give none are lost."""
        signs = await asyncio.gather(*(link.probe(self._silence.sign_s) for link in links), return_exceptions=True)
        for link, sign in zip(links, signs, strict=True):
            if isinstance(sign, NodeError):
                self._lose(link, sign)

    # Repair.

    def _begin_repair(self) -> None:
        if not self._is_repairing and self._planner is not None and self._failure is None:
            self._is_repairing = True
            self._spawn(self._repair(self._planner))

    async def _repair(self, planner: Planner) -> None:
        began_s = time.monotonic()
        reason: NodeError | None = None
        try:
            async with self._handing:
                while self._lost and self._failure is None:
                    if self._waited_s > self._step_timeout_s:
                        self._fail(unreachable([link.stage for link in self._lost], reason))
                        return
                    try:
                        repaired = await self._replace_lost(planner)
                    except UnavailableError as error:
                        logger.debug("nobody takes the place of a lost stage: %s", error)
                        reason = error
                        await asyncio.sleep(_PAUSE_BETWEEN_TRIES_S)
                    else:
                        planner.tell(replace(repaired, seconds=time.monotonic() - began_s))
        finally:
            self._is_repairing = False
            self._silence.repaired(time.monotonic())

    async def _replace_lost(self, planner: Planner) -> Repaired:
        """Put other stages in the place of the first ones that are lost, and let them catch up."""
        answered = self._answered  # What comes while they are asked is not in their signs of life.
        await self._probe([link for link in self._links if link not in self._lost])  # They might all be gone.
        for link, reason in self._lost.items():
            if link not in self._starved:
                planner.failed(link.stage.peer_id, reason)
        self._lose_starved(answered)
        self._has_lost.clear()
        await asyncio.gather(*(link.cut() for link in self._lost))
        if self._links[0] in self._lost:
            await self._drop_push()
        return await self._replace(planner, set(self._lost))

    def _lose_starved(self, answered: int) -> None:
        """Note stages as lost that had not the whole history yet from a stage that is lost: nobody can complete it.

        Args:
            answered: steps that had been answered before the stages were asked for signs of life.
        """
        for before, link in itertools.pairwise(self._links):
            is_behind = link.alive is not None and link.alive.handed_on < answered
            if is_behind and before in self._lost and link not in self._lost:
                self._starved.add(link)
                self._lost[link] = StageLost(f"The stage {link.stage} has lost its history; {RETRYABLE_WORDS}.")

    async def _replace(self, planner: Planner, old: Set[StageLink], *, are_leaving: bool = False) -> Repaired:
        """Put other stages in the place of the first ones of ``old`` that stand together."""
        first = next(index for index, link in enumerate(self._links) if link in old)
        if first:
            await self._catch_up(self._links[first - 1], old)
        contract, handed = self._contract, self._handed()
        shape = replace(self._shape, steps=handed.answered)
        if contract is not None:
            shape = replace(shape, segment=contract.next_segment, sent=contract.num_sent)
        found = await open_replacement(
            self._swarm,
            planner,
            self.session,
            shape,
            self._links,
            old,
            are_leaving=are_leaving,
            dealings=self._dealings,
        )
        replaced = self._links[found.first : found.last + 1]
        for link in replaced:
            self._past_bytes = [self._past_bytes[0] + link.bytes_out, self._past_bytes[1] + link.bytes_in]
            self._lost.pop(link, None)
            self._starved.discard(link)
            if self._audits is not None:
                self._audits.lost(link.stage.peer_id)
        self._links[found.first : found.last + 1] = found.links
        if contract is not None:
            deals = [link.deal for link in found.links if link.deal is not None]
            contract.replaced(found.first, found.last, deals, handed)
        if self._audits is not None:
            self._audits.opened(list(found.links))
        for link in found.links:
            link.watch(self._take, self._lose)
        if found.first == 0:
            await self._drop_push()
        self._end_later(replaced)
        await self._hand_over(found.first, len(found.links), handed.answered)
        return Repaired(
            lost=tuple(str(link.stage) for link in replaced),
            replaced_by=tuple(str(link.stage) for link in found.links),
            replayed_tokens=self._log.length if self._log else 0,
            same_drift_class={_drift_class(link) for link in replaced} == {_drift_class(link) for link in found.links},
        )

    def _handed(self) -> Handed:
        """Return what new stages are given; results that come while they are opened change nothing about it."""
        answered, log = self._answered, self._log
        num_sent = self._contract.num_sent if self._contract is not None else answered
        waiting = tuple(self._waiting)[: num_sent - answered]
        length = waiting[0].position if waiting else log.length if log else 0
        return Handed(answered, self._shape.batch, length, waiting)

    def _end_later(self, links: Sequence[StageLink]) -> None:
        for link in links:
            task = asyncio.create_task(self._say_goodbye(link))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _say_goodbye(self, link: StageLink) -> None:
        await link.close()
        if self._contract is not None and link.deal is not None:
            self._contract.let_go(link.deal)

    async def _catch_up(self, link: StageLink, old: Set[StageLink]) -> None:
        """Wait until a stage that was new a moment ago has handed on all that was answered before it came.

        Raises:
            StageLost: it does not in time, or others are lost meanwhile.
        """
        while (await link.probe(self._silence.sign_s)).handed_on < self._answered:
            if self._lost.keys() - old:
                raise StageLost("Another stage was lost meanwhile.")
            if self._waited_s > self._step_timeout_s:
                self._lose(link, StageLost(f"The stage {link.stage} does not catch up; {RETRYABLE_WORDS}."))
                raise StageLost(f"The stage {link.stage} does not catch up.")
            await asyncio.sleep(_LOOK_S)

    async def _hand_over(self, first: int, num_new: int, answered: int) -> None:
        """Let the stages from ``first`` on have the history: from the stage before them, or from here."""
        new = self._links[first]
        if first == 0:
            try:
                self._push = FrameStream(
                    await self._swarm.dial(new.stage.peer_id, PROTOCOL, addresses=new.stage.addresses)
                )
                for step in self._log.replay(answered, num_new) if self._log else ():
                    if self._contract is not None:
                        self._contract.resent(step)
                    await self._push.send(step, self._step_timeout_s)
            except (PeerUnavailable, UnavailableError) as error:
                self._lose(new, StageLost(str(error)))
            return
        before = self._links[first - 1]
        segment = self._contract.next_segment - 2 if self._contract is not None else 0  # That of this repair.
        handing = asyncio.create_task(before.replay(new.stage, answered, num_new, self._step_timeout_s, segment))
        losing = asyncio.create_task(self._has_lost.wait())
        try:
            while not handing.done() and not losing.done():
                done, _ = await asyncio.wait((handing, losing), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    await self._probe(self._links)
            if handing.done() and handing.exception() is not None:
                self._lose(before, StageLost(f"The stage {before.stage} does not answer; {RETRYABLE_WORDS}."))
        finally:
            for task in (handing, losing):
                task.cancel()
            await asyncio.gather(handing, losing, return_exceptions=True)

    # Stages that leave.

    def _leave(self, link: StageLink) -> None:
        """Note that a stage asks for somebody to take its place; it serves until then."""
        if self._planner is None or link not in self._links:
            return
        self._leaving.add(link)
        self._planner.failed(link.stage.peer_id, _LEAVES)
        if self._moving is None or self._moving.done():
            self._moving = self._spawn(self._move(self._planner))

    async def _move(self, planner: Planner) -> None:
        """Put other stages in the place of leaving ones between two steps; try again while there are none."""
        pause_s = _PAUSE_BETWEEN_MOVES_S
        while self._failure is None and (leaving := self._leaving & set(self._links) - self._lost.keys()):
            try:
                await rehearse(self._swarm, planner, list(self._links), leaving)
                async with self._handing:
                    await self._move_now(planner, leaving)
            except UnavailableError as error:
                logger.debug("nobody takes the place of a leaving stage: %s", error)
            if leaving & set(self._links):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_BETWEEN_MOVES_S)

    async def _move_now(self, planner: Planner, leaving: Set[StageLink]) -> None:
        began_s = time.monotonic()
        if await self._is_quiet() and leaving <= set(self._links):
            await self._settle_with(leaving)
            repaired = await self._replace(planner, leaving, are_leaving=True)
            planner.tell(replace(repaired, were_leaving=True, seconds=time.monotonic() - began_s))

    async def _settle_with(self, leaving: Set[StageLink]) -> None:
        """Let stages that leave ask for their last signatures first, while nothing is sent."""
        contract = self._contract
        places = [place for place, link in enumerate(self._links) if link in leaving]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SIGNATURES_S):
                while contract is not None and not all(map(contract.is_settled, places)) and not self._lost:
                    self._has_news.clear()
                    await self._has_news.wait()

    async def _is_quiet(self) -> bool:
        """Wait until all that was sent is answered; return whether that is so and no stage is lost."""
        while not self._lost and self._failure is None:
            if self._log is None or self._log.count == self._answered:
                return True
            self._has_news.clear()
            await self._has_news.wait()
        return False

    async def _drop_push(self) -> None:
        push, self._push = self._push, None
        if push is not None:
            self._past_bytes[0] += push.bytes_out
            await push.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End the session at every stage; doing so twice is fine."""
        self._closing = self._closing or asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._failure = self._failure or LocalError("The session is closed.")
        if self._audits is not None:
            self._audits.ended()
        if self.trace is not None:
            self.trace.end()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._rechecking is not None:
            await self._rechecking.close(_RECHECK_S)
        if self._contract is not None and not self._waiting:
            with contextlib.suppress(StageAtFault):
                self._contract.seal()
        await asyncio.gather(*(link.close() for link in self._links), *self._ending)
        await self._drop_push()
        if self._contract is not None:
            self._contract.close()


async def open_chain(
    swarm: Swarm,
    route: Route,
    shape: SessionShape,
    *,
    step_timeout_s: float,
    planner: Planner | None = None,
    dealings: Dealings | None = None,
    auditor: Auditor | None = None,
) -> Chain:
    """Open a session at every stage of ``route`` at once.

    Args:
        swarm: reaches the stages.
        route: the stages.
        shape: what every one is told.
        step_timeout_s: how long a step, or a repair, may take.
        planner: finds stages for lost ones; None: a lost stage ends the session.
        dealings: makes offers; None: nothing is signed for.
        auditor: audits what is signed for; None: nobody does.

    Raises:
        StageFailed: a stage is not reachable or refuses; every other stage is closed again.
    """
    session = os.urandom(16)
    plan = None
    if dealings is not None:
        plan = plan_audits(auditor, session, [stage.peer_id for stage in route.stages])
    links = await open_links(swarm, route.stages, session, shape, previous=swarm.peer_id, after=None, dealings=dealings)
    first = route.stages[0]
    try:
        push = FrameStream(await swarm.dial(first.peer_id, PROTOCOL, addresses=first.addresses))
    except PeerUnavailable as error:
        await asyncio.gather(*(link.close() for link in links))
        raise StageFailed(first, error) from error
    except asyncio.CancelledError:
        await asyncio.gather(*(link.close() for link in links))
        raise
    contract = audits = None
    if dealings is not None:
        deals = [link.deal for link in links if link.deal is not None]
        contract = SessionContract(dealings, session, shape.codec, shape.hidden_size, shape.thin, deals, plan)
        if auditor is not None and plan is not None:
            audits = SessionAudits(auditor, contract, session, shape)
            audits.opened(links)
    return Chain(
        swarm,
        session,
        shape,
        links,
        push,
        step_timeout_s=step_timeout_s,
        planner=planner,
        dealings=dealings,
        contract=contract,
        audits=audits,
    )


def _drift_class(link: StageLink) -> tuple[str, str]:
    return link.dtype, link.stage.drift_class


def _overlap() -> LocalError:
    return LocalError("A session takes its next steps when the last ones have been answered; open one for each thread.")
