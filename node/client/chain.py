"""A session through a route: control streams to every stage, steps in at the first, results out at the last.

Runs in the client's event loop and touches payloads as bytes. It knows nothing of transformers, nor of what a step
means; ``history`` decides what to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dht.errors import UnavailableError as PeerUnavailable
from dht.swarm import Swarm
from node.client.route import Route, Stage
from node.client.thin_terms import ThinTerms
from node.errors import LocalError, NodeError, Refused, SessionError, StageLost, UnavailableError
from node.transport import FrameStream
from node.wire import PROTOCOL, Accept, Close, Drain, Open, Refuse, Result, Step
from node.wire import StageLost as StageLostFrame

Settle: TypeAlias = Callable[[Result | None, NodeError | None], None]

_RETRYABLE_WORDS = "try again, or let the swarm grow"


@dataclass(frozen=True, slots=True)
class SessionShape:
    """What every stage is told when a session opens."""

    manifest: bytes
    batch: int
    left_padding: tuple[int, ...]
    max_length: int
    codec: str
    thin: ThinTerms | None = None
    """What the ends of the route do for a client without weights; None: nothing."""


class StageFailed(UnavailableError):
    """A stage could not be opened; another server may do."""

    def __init__(self, stage: Stage, reason: NodeError | PeerUnavailable) -> None:
        super().__init__(f"The stage {stage} is not available: {reason}")
        self.stage = stage
        self.reason = reason


class Chain:
    """An open session. Made by ``open_chain``; ended by ``close``."""

    def __init__(
        self,
        session: bytes,
        route: Route,
        streams: Sequence[FrameStream],
        step_timeout_s: float,
        thin: ThinTerms | None = None,
    ) -> None:
        self.session = session
        self.route = route
        self._streams = streams
        self._step_timeout_s = step_timeout_s
        self._thin = thin
        self._results: asyncio.Queue[Result | NodeError] = asyncio.Queue()
        self._waiting: tuple[Step, Settle, asyncio.TimerHandle] | None = None
        self._is_running = False
        self._failure: NodeError | None = None
        self._watchers = [
            asyncio.create_task(self._watch(stage, stream)) for stage, stream in zip(route.stages, streams, strict=True)
        ]

    @property
    def bytes_out(self) -> int:
        """Bytes sent on the control streams, steps included."""
        return sum(stream.bytes_out for stream in self._streams)

    @property
    def bytes_in(self) -> int:
        """Bytes received on the control streams, results included."""
        return sum(stream.bytes_in for stream in self._streams)

    async def run(self, steps: Sequence[Step]) -> list[Result]:
        """Send ``steps`` and return their results in order; several steps are in flight at once.

        Raises:
            StageLost: a stage is gone or silent.
            Refused: a stage ended the session, with its reason.
            SessionError: a stage broke the protocol.
            LocalError: other steps of this session are still in flight.
        """
        if self._is_busy:
            raise _overlap()
        self._is_running = True
        sending = asyncio.create_task(self._send_all(steps))
        try:
            return [await self._receive(step) for step in steps]
        finally:
            self._is_running = False
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, NodeError):
                await sending

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
        try:
            self._streams[0].write(step)
        except UnavailableError:
            settle(None, StageLost(f"The stage {self.route.stages[0]} is gone; {_RETRYABLE_WORDS}."))
            return
        timer = asyncio.get_running_loop().call_later(self._step_timeout_s, self._arrived, self._silence())
        self._waiting = (step, settle, timer)

    @property
    def _is_busy(self) -> bool:
        return self._is_running or self._waiting is not None

    def _arrived(self, outcome: Result | NodeError) -> None:
        """Take what a stage sent: to whoever waits for one step, or into the queue. A failure is the session's last."""
        if isinstance(outcome, NodeError):
            self._failure = self._failure or outcome
        if self._waiting is None:
            self._results.put_nowait(outcome)
            return
        step, settle, timer = self._waiting
        self._waiting = None
        timer.cancel()
        try:
            settle(self._checked(outcome, step), None)
        except NodeError as error:
            settle(None, error)

    def _silence(self) -> StageLost:
        return StageLost(f"No stage answered within {self._step_timeout_s:.0f} s; {_RETRYABLE_WORDS}.")

    def abandon(self) -> None:
        """Make every later step fail: the caller has gone away in the middle of one."""
        self._arrived(StageLost("The session was interrupted in the middle of a step; open a new one."))

    async def _send_all(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                await self._streams[0].send(step)
        except UnavailableError:
            # The watcher of the stream may know better what happened; this is for when it does not.
            self._arrived(StageLost(f"The stage {self.route.stages[0]} is gone; {_RETRYABLE_WORDS}."))

    async def _receive(self, step: Step) -> Result:
        if self._failure is not None and self._results.empty():
            raise self._failure
        try:
            async with asyncio.timeout(self._step_timeout_s):
                return self._checked(await self._results.get(), step)
        except TimeoutError:
            self._failure = self._silence()
            raise self._failure from None

    def _checked(self, outcome: Result | NodeError, step: Step) -> Result:
        if isinstance(outcome, NodeError):
            raise outcome
        if outcome.position != step.position or not self._has_form(outcome, step):
            raise SessionError(f"The stage {self.route.stages[-1]} answered another step than it was asked.")
        return outcome

    def _has_form(self, result: Result, step: Step) -> bool:
        if self._thin is not None:
            return self._thin.is_answer(result, step)
        return result.shape == step.shape and result.codec == step.codec

    async def _watch(self, stage: Stage, stream: FrameStream) -> None:
        try:
            while True:
                frame = await stream.receive()
                match frame:
                    case Result() if stream is self._streams[-1] and frame.session == self.session:
                        self._arrived(frame)
                    case Refuse():
                        self._arrived(_as_error(stage, frame))
                    case StageLostFrame():
                        self._arrived(StageLost(f"The stage after {stage} is gone; {_RETRYABLE_WORDS}."))
                    case Drain():
                        continue
                    case None:
                        self._arrived(StageLost(f"The stage {stage} is gone; {_RETRYABLE_WORDS}."))
                        return
                    case _:
                        raise SessionError(f"The stage {stage} sent a {frame.__class__.__name__} frame out of place.")
        except NodeError as error:
            self._arrived(error)

    async def close(self) -> None:
        """End the session at every stage."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(self._close_stream(stream) for stream in self._streams))

    async def _close_stream(self, stream: FrameStream) -> None:
        with contextlib.suppress(UnavailableError):
            await stream.send(Close(self.session))
        await stream.close()


async def open_chain(swarm: Swarm, route: Route, shape: SessionShape, *, step_timeout_s: float) -> Chain:
    """Open a session at every stage of ``route`` at once.

    Raises:
        StageFailed: a stage is not reachable or refuses; every other stage is closed again.
    """
    session = os.urandom(16)
    openings = [
        asyncio.create_task(_open_stage(swarm, route, index, session, shape)) for index in range(len(route.stages))
    ]
    done = await asyncio.gather(*openings, return_exceptions=True)
    streams = [outcome for outcome in done if isinstance(outcome, FrameStream)]
    failures = [outcome for outcome in done if isinstance(outcome, BaseException)]
    if failures:
        await asyncio.gather(*(stream.close() for stream in streams))
        # A stage whose next stage cannot be reached is not the one at fault when that one failed by itself.
        failures.sort(key=lambda failure: _is_secondary(failure))
        raise failures[0]
    return Chain(session, route, streams, step_timeout_s, shape.thin)


def _overlap() -> LocalError:
    return LocalError("A session takes its next steps when the last ones have been answered; open one for each thread.")


def _is_secondary(failure: BaseException) -> bool:
    reason = failure.reason if isinstance(failure, StageFailed) else None
    return isinstance(reason, Refused) and reason.code == "next_unreachable"


async def _open_stage(swarm: Swarm, route: Route, index: int, session: bytes, shape: SessionShape) -> FrameStream:
    stage = route.stages[index]
    before = route.stages[index - 1] if index else None
    after = route.stages[index + 1] if index + 1 < len(route.stages) else None
    try:
        frames = FrameStream(await swarm.dial(stage.peer_id, PROTOCOL, addresses=stage.addresses))
    except PeerUnavailable as error:
        raise StageFailed(stage, error) from error
    opened = Open(
        session=session,
        manifest=shape.manifest,
        start=stage.start,
        end=stage.end,
        batch=shape.batch,
        left_padding=shape.left_padding,
        max_length=shape.max_length,
        codec=shape.codec,
        previous=before.peer_id if before else "",
        next=after.peer_id if after else "",
        next_addresses=after.addresses if after else (),
        embed=shape.thin is not None and before is None,
        top=shape.thin.top if shape.thin and after is None else 0,
        sampling=shape.thin.sampling if shape.thin and after is None else None,
    )
    try:
        await frames.send(opened)
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            answer = await frames.receive()
        match answer:
            case Accept() if answer.session == session:
                return frames
            case Refuse():
                raise _as_error(stage, answer)
            case None:
                raise StageLost(f"The stage {stage} closed the stream.")
            case _:
                raise SessionError(f"The stage {stage} answered open with {type(answer).__name__}.")
    except TimeoutError as error:
        await frames.close()
        raise StageFailed(stage, StageLost(f"no answer within {_OPEN_TIMEOUT_S:.0f} s")) from error
    except NodeError as error:
        await frames.close()
        raise StageFailed(stage, error) from error


_OPEN_TIMEOUT_S = 10.0


def _as_error(stage: Stage, refusal: Refuse) -> Refused:
    return Refused(
        refusal.code,
        f"The stage {stage} refuses: {refusal.message}",
        retryable=refusal.retryable,
        retry_after_s=refusal.retry_after_ms / 1000,
    )
