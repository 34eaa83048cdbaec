"""The I/O shell of a stage: streams of ``/efedllm/session/1`` in, work to the engine, outputs to the next stage.

Runs in the event loop. What a session may do is decided by ``session`` (pure); what it may use by ``budget`` (pure);
what is computed runs in the engine's thread. Two kinds of streams arrive: a client's control stream, which begins with
``open`` and ends the session when it ends, and a previous stage's push stream, which carries the steps of one session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from dht.errors import DhtError
from node.engine import Engine
from node.errors import ComputeFailed, NodeError, Refused, RemoteError, SessionError, UnavailableError
from node.model.span import Span
from node.model.tensors import codec_of
from node.serve.budget import CacheBudget
from node.serve.computation import Computation
from node.serve.session import Compute, StageSession
from node.transport import ByteStream, FrameStream
from node.wire import (
    MAX_HEADER_BYTES,
    NO_SESSION,
    PROTOCOL,
    Accept,
    Close,
    Frame,
    Open,
    Refuse,
    Reserved,
    Result,
    Sendable,
    StageLost,
    Step,
    step_session,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

_RETRY_AFTER_FULL_S = 5.0


class Dialer(Protocol):
    """Opens a stream to a peer: ``dht.swarm.Swarm.dial``."""

    def __call__(
        self, peer_id: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Awaitable[ByteStream]:
        """Return an open stream to ``peer_id``."""


@dataclass(frozen=True)
class Served:
    """What a server offers; fixed while it runs."""

    span: Span
    manifest: bytes
    """sha256 identity of the model."""
    hidden_size: int
    cache_bytes_per_token: int
    """Cache memory of one position of one row through the whole span."""
    max_sessions: int = 256
    idle_timeout_s: float = 600.0
    """A session without a step for so long is closed."""
    send_timeout_s: float = 30.0
    """A client that does not read for so long loses its session; a next stage is reported to the client as lost."""


@dataclass
class Counters:
    """What a server has done since it started."""

    sessions: int = 0
    steps: int = 0
    tokens: int = 0
    """Rows times positions computed."""
    refused: int = 0
    broken: int = 0
    """Streams ended because the peer broke the protocol."""


@dataclass
class _Live:
    """A running session with everything it holds."""

    state: StageSession
    computation: Computation
    client: FrameStream
    """The client's control stream."""
    last_used_s: float
    previous: FrameStream | None = None
    """The stream on which the previous stage pushes steps, while there is one."""
    next: FrameStream | None = None
    """The stream on which outputs are pushed to the next stage."""
    output: tuple[memoryview, tuple[int, ...]] | None = None
    """The last step's output bytes and shape, for a repeated step."""


class Handler:
    """Serves the sessions of one span."""

    def __init__(self, served: Served, engine: Engine, dial: Dialer, cache_bytes: int) -> None:
        self.counters = Counters()
        self.budget = CacheBudget(cache_bytes)
        self._served = served
        self._engine = engine
        self._dial = dial
        self._sessions: dict[bytes, _Live] = {}
        self._draining = False

    @property
    def num_sessions(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    def drain(self) -> None:
        """Refuse new sessions from now on."""
        self._draining = True

    async def handle(self, stream: ByteStream) -> None:
        """Serve one stream to its end; never raises for what a peer did."""
        frames = FrameStream(stream)
        try:
            await self._serve(frames)
        except UnavailableError:
            pass  # The peer is gone; what it held has been freed on the way out.
        except RemoteError as error:
            self.counters.broken += 1
            logger.info("%s broke the protocol: %s", frames.peer_id, error)
            with contextlib.suppress(UnavailableError):
                await frames.send(_refusal(NO_SESSION, error), self._served.send_timeout_s)
        finally:
            await frames.close()

    async def _serve(self, frames: FrameStream) -> None:
        head = await self._in_time(frames.peek(MAX_HEADER_BYTES))
        if head is None:
            return
        if (session := step_session(head)) is not None:
            await self._serve_pushes(frames, session)
            return
        match await self._in_time(frames.receive(MAX_HEADER_BYTES)):
            case None:
                return
            case Open() as opened:
                await self._serve_client(frames, opened)
            case _:
                raise SessionError("A stream begins with open (a client) or step (a previous stage).")

    async def _in_time(self, reading: Awaitable[T]) -> T | None:
        """Return what is read, or None when the peer keeps silent for too long."""
        try:
            async with asyncio.timeout(self._served.idle_timeout_s):
                return await reading
        except TimeoutError:
            return None

    async def _serve_client(self, frames: FrameStream, opened: Open) -> None:
        try:
            live = self._open(frames, opened)
        except Refused as refusal:
            self.counters.refused += 1
            await frames.send(_refusal(opened.session, refusal), self._served.send_timeout_s)
            return
        max_bytes = MAX_HEADER_BYTES + (0 if opened.previous else live.state.max_step_bytes)
        try:
            await self._dial_next(live)
            await self._tell_client(live, Accept(opened.session, codec_of(self._served.span.dtype)))
            while (frame := await frames.receive(max_bytes)) is not None and not isinstance(frame, Close):
                await self._obey_client(live, frame)
        except (RemoteError, Refused, ComputeFailed) as error:
            await self._end(live, error)
        finally:
            await self._end(live)

    async def _obey_client(self, live: _Live, frame: Frame) -> None:
        match frame:
            case Step() if live.state.opened.previous:
                raise SessionError("Steps of this session come from the previous stage, not from the client.")
            case Step() if frame.session == live.state.opened.session:
                await self._run(live, frame)
            case Reserved():
                message = f"This version does not know the frame {frame.kind} yet."
                await self._tell_client(live, Refuse(NO_SESSION, "unsupported", message))
            case _:
                raise SessionError("Only step and close of the stream's own session are allowed here.")

    async def _serve_pushes(self, frames: FrameStream, session: bytes) -> None:
        live = self._sessions.get(session)
        if live is None or live.state.opened.previous != frames.peer_id:
            raise SessionError("This stage has no session that takes steps from this peer.")
        if live.previous is not None:
            raise SessionError("The steps of this session come on another stream already.")
        live.previous = frames
        max_bytes = MAX_HEADER_BYTES + live.state.max_step_bytes
        try:
            while (frame := await self._in_time(frames.receive(max_bytes))) is not None:
                if not isinstance(frame, Step) or frame.session != session:
                    raise SessionError("A push stream carries the steps of one session and nothing else.")
                await self._run(live, frame)
        except (RemoteError, Refused, ComputeFailed) as error:
            await self._end(live, error)
        except UnavailableError:  # The client is gone, or does not read.
            await self._end(live)
        finally:
            live.previous = None

    def _open(self, frames: FrameStream, opened: Open) -> _Live:
        """Take a session in; whoever calls this sees to its end."""
        served = self._served
        self._check_open(opened)
        try:
            state = StageSession(opened, served.hidden_size)
        except SessionError as error:
            raise Refused("bad_open", str(error)) from error
        computation = Computation(served.span.view(opened.start, opened.end), opened.max_length)
        self._promise(opened.session, opened.batch, opened.max_length)
        live = _Live(state, computation, frames, time.monotonic())
        self._sessions[opened.session] = live
        self.counters.sessions += 1
        return live

    async def _dial_next(self, live: _Live) -> None:
        opened = live.state.opened
        if not opened.next:
            return
        try:
            stream = FrameStream(await self._dial(opened.next, PROTOCOL, addresses=opened.next_addresses))
        except DhtError as error:
            self.counters.refused += 1
            message = f"The next stage {opened.next} cannot be reached from here."
            raise Refused("next_unreachable", message, retryable=True) from error
        if not self._is_open(live):
            await stream.close()
            raise UnavailableError("The session has ended.")
        live.next = stream

    def _check_open(self, opened: Open) -> None:
        served = self._served
        if self._draining:
            raise Refused("draining", "This server is leaving; choose another.", retryable=True)
        if opened.session in self._sessions:
            raise Refused("duplicate", "A session with this id is open already; choose a random id.")
        if opened.manifest != served.manifest:
            raise Refused("wrong_model", "This server holds another model; look the directory up again.")
        if not served.span.start <= opened.start < opened.end <= served.span.end:
            held = f"{served.span.start}:{served.span.end}"
            raise Refused("wrong_blocks", f"This server holds the blocks {held}; look the directory up again.")
        if opened.adapter:
            raise Refused("unsupported", "This version serves no adapters yet; open the session without one.")
        if len(self._sessions) >= served.max_sessions:
            message = f"All {served.max_sessions} sessions of this server are taken."
            raise Refused("full", message, retryable=True, retry_after_s=_RETRY_AFTER_FULL_S)

    def _promise(self, session: bytes, rows: int, max_length: int) -> None:
        """Promise cache memory for ``rows`` rows of ``max_length`` positions, or refuse."""
        num_bytes = rows * max_length * self._served.cache_bytes_per_token
        if num_bytes > self.budget.total_bytes:
            message = (
                f"{rows} rows of {max_length} positions need {num_bytes >> 20} MiB of cache here; "
                f"this server has {self.budget.total_bytes >> 20} MiB: ask for less."
            )
            raise Refused("too_long", message)
        if not self.budget.can_promise(session, num_bytes):
            message = f"The cache of this server is taken: {self.budget.free_bytes >> 20} MiB are free."
            raise Refused("full", message, retryable=True, retry_after_s=_RETRY_AFTER_FULL_S)
        self.budget.promise(session, num_bytes)

    async def _run(self, live: _Live, step: Step) -> None:
        if not self._is_open(live):
            raise UnavailableError("The session has ended.")
        live.last_used_s = time.monotonic()
        order = live.state.receive(step)
        if isinstance(order, Compute):
            if order.rows is not None:
                self._promise(step.session, len(order.rows), live.state.opened.max_length)
            output = await self._engine.submit(partial(live.computation.compute, order))
            if not self._is_open(live):
                raise UnavailableError("The session has ended.")
            live.output = output
            self.counters.steps += 1
            self.counters.tokens += step.shape[0] * step.shape[1]
        if live.output is None:
            raise SessionError("The step is repeated before its output exists.")
        await self._hand_on(live, step, *live.output)

    async def _hand_on(self, live: _Live, step: Step, payload: memoryview, shape: tuple[int, ...]) -> None:
        if live.next is None:
            await self._tell_client(live, Result(step.session, step.position, shape, step.codec, payload))
            return
        pushed = Step(step.session, step.position, shape, step.codec, payload, step.crop, step.rows)
        try:
            await live.next.send(pushed, self._served.send_timeout_s)
        except UnavailableError:
            await live.next.close()  # Nothing more is queued for a stage that does not read.
            await self._tell_client(live, StageLost(step.session, live.state.opened.next))

    async def _tell_client(self, live: _Live, frame: Sendable) -> None:
        await live.client.send(frame, self._served.send_timeout_s)

    def _is_open(self, live: _Live) -> bool:
        return self._sessions.get(live.state.opened.session) is live

    async def _end(self, live: _Live, error: NodeError | None = None) -> None:
        """End a session, unless it has ended: give its memory back, tell the client why, close every stream of it.

        All sessions end here. The tasks that serve its streams see them closed and return.
        """
        if not self._is_open(live):
            return
        session = live.state.opened.session
        del self._sessions[session]
        self.budget.release(session)
        live.computation.drop()
        live.output = None
        if error is not None:
            self.counters.broken += isinstance(error, RemoteError)
            with contextlib.suppress(UnavailableError):
                live.client.write(_refusal(session, error))  # not waiting: it may not be reading
        streams = (live.client, live.previous, live.next)
        await asyncio.gather(*(stream.close() for stream in streams if stream is not None))

    async def expire(self, now_s: float) -> int:
        """Close the sessions that have been idle for too long; return how many."""
        idle = [live for live in self._sessions.values() if now_s - live.last_used_s > self._served.idle_timeout_s]
        refusal = Refused("idle", "The session was idle for too long; open it again.")
        await asyncio.gather(*(self._end(live, refusal) for live in idle))
        return len(idle)


def _refusal(session: bytes, error: NodeError) -> Refuse:
    if isinstance(error, Refused):
        return Refuse(session, error.code, str(error)[:512], error.retryable, int(error.retry_after_s * 1000))
    code = "failed" if isinstance(error, ComputeFailed) else "protocol"
    return Refuse(session, code, str(error)[:512], retryable=isinstance(error, ComputeFailed))
