"""The I/O shell of a stage: streams of ``/efedllm/session/1`` in, work to the engine, outputs to the next stage.

Runs in the event loop. What a session may do is decided by ``session`` (pure); where its cache stands by ``slots``
(pure); what is computed runs in the engine's thread. Three kinds of streams arrive: a client's control stream, which
begins with ``open`` and ends the session when it ends, a previous stage's push stream, which carries the steps of one
session, and a client's ``reveal``, which asks for what was handed on in sessions of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from dht.errors import DhtError
from dht.swarm import LAST_WORD_S
from node.engine import Engine
from node.errors import ComputeFailed, NodeError, Refused, RemoteError, SessionError, UnavailableError
from node.model.arena import KeyValueArena
from node.model.span import Span
from node.model.tensors import codec_of
from node.serve.admission import Served
from node.serve.bandwidth import Bandwidth
from node.serve.contract import Contract
from node.serve.contracts import Contracts
from node.serve.outlets import Dialer, Live, Outlets, Streams
from node.serve.precedence import Precedence
from node.serve.prefixes import PrefixStore
from node.serve.reveals import Openable, Reveals
from node.serve.runner import Runner
from node.serve.session import Compute, Known
from node.serve.slots import Slots
from node.transport import ByteStream, FrameStream
from node.wire import (
    MAX_DRAIN_S,
    MAX_HEADER_BYTES,
    NO_SESSION,
    Accept,
    Adopt,
    Close,
    Cosign,
    Drain,
    Frame,
    Open,
    Probe,
    Refuse,
    Replay,
    Reveal,
    Sendable,
    StageLost,
    Step,
    Voucher,
    pushed_session,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MAX_KEPT_BYTES = 64 * 2**10
"""Outputs up to this size are kept for a repeated step; longer ones would be memory that nobody has counted."""
_MAX_SILENT = 32
"""Streams that one peer may have open before it says what they are for, besides those that its sessions here await."""


@dataclass
class Counters:
    """What a server has done since it started."""

    sessions: int = 0
    refused: int = 0
    broken: int = 0
    """Streams ended because the peer broke the protocol."""


class Handler:
    """Serves the sessions of one span.

    Args:
        served: what is offered.
        engine: runs the steps.
        dial: opens streams to next stages.
        arena: memory for the caches of all sessions.
        prefixes: remembers common beginnings of sessions; None: every session computes all of its own.
        log_bytes: memory for what sessions have handed on; more of it than this is refused.
        contracts: binds sessions to what is signed for; None: nothing is counted.
        precedence: whose sessions and steps come first under load; None: nobody's.
    """

    def __init__(
        self,
        served: Served,
        engine: Engine,
        dial: Dialer,
        arena: KeyValueArena,
        prefixes: PrefixStore | None = None,
        log_bytes: int = 2**30,
        contracts: Contracts | None = None,
        precedence: Precedence | None = None,
    ) -> None:
        self.counters = Counters()
        self._runner = Runner(served, engine, arena, prefixes, log_bytes, self._is_open, precedence)
        self._served = served
        self._contracts = contracts
        self._engine = engine
        self._sessions: dict[bytes, Live] = {}
        self._streams = Streams(Bandwidth(served.max_bytes_per_s))
        self._silent = Counter[str]()
        """Streams whose first frame has not come yet, by peer."""
        self._leaves_within_s: float | None = None
        """How long sessions are still served; None: as long as they like."""
        self._is_empty = asyncio.Event()
        """Set when the last session has ended."""
        self._outlets = Outlets(dial, served.send_timeout_s, self._streams, self._is_open)
        self._reveals = Reveals(self._openable, self._pay_for_opening, served.send_timeout_s)

    @property
    def span(self) -> Span:
        """The blocks that are served."""
        return self._served.span

    @property
    def slots(self) -> Slots:
        """Where the caches of sessions stand."""
        return self._runner.admission.slots

    @property
    def num_sessions(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    @property
    def num_streams(self) -> int:
        """Streams open now: of clients, of previous stages, to next ones."""
        return self._streams.num_open

    @property
    def compute_cpu_s(self) -> float:
        """Processor time that the compute thread has taken since it started, s."""
        return self._engine.cpu_s

    @property
    def cache_bytes_per_position(self) -> int:
        """Bytes that one position of one row takes in the cache."""
        return self._served.span.cache_bytes_per_position

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """Bytes read from and written to all session streams so far."""
        return self._streams.bytes_moved

    @property
    def held_s(self) -> float:
        """How long logs of sessions that have ended are to be there for certain, s."""
        return max(0.0, self._runner.admission.archive.held_s(time.monotonic()))

    def close_doors(self, reason: Refused) -> None:
        """Refuse new sessions with ``reason`` from now on."""
        self._runner.admission.closed = reason

    def open_doors(self) -> None:
        """Take new sessions again."""
        self._runner.admission.closed = self._leaves_within_s = None

    async def hand_over(self, within_s: float) -> bool:
        """Ask the clients of all sessions to go elsewhere, and wait until they have; return whether all did.

        Args:
            within_s: how long they are waited for; what is said to them is this, too.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                self.ask_to_leave(within_s)
                self._is_empty.clear()
                if self._sessions:
                    await self._is_empty.wait()
        return not self._sessions

    def ask_to_leave(self, within_s: float) -> None:
        """Ask the clients of all sessions to go elsewhere; they are served for ``within_s`` more."""
        self._leaves_within_s = within_s
        for live in self._sessions.values():
            self._tell_leaving(live)

    def _tell_leaving(self, live: Live) -> None:
        """Tell a client that knows its session to be open; not waiting: it may not be reading."""
        if live.is_accepted and self._leaves_within_s is not None:
            seconds = min(int(self._leaves_within_s), MAX_DRAIN_S)
            with contextlib.suppress(UnavailableError):
                live.client.write(Drain(live.state.opened.session, seconds))
                if live.contract is not None and (due := live.contract.leave()) is not None:
                    live.client.write(due)

    async def end_all(self, reason: Refused) -> None:
        """End every session, with ``reason``."""
        await asyncio.gather(*(self._end(live, reason) for live in list(self._sessions.values())))

    async def close(self, reason: Refused) -> None:
        """End every session, with ``reason``, and every stream, so that nothing holds the blocks any more."""
        self.close_doors(reason)
        await self.end_all(reason)
        await self._streams.close()

    async def handle(self, stream: ByteStream) -> None:
        """Serve one stream to its end; never raises for what a peer did."""
        frames = FrameStream(stream)
        self._streams.enter(frames)
        try:
            await self._serve_bounded(frames)
            await frames.finish()
        finally:
            self._streams.leave(frames)
            await frames.close()

    async def _serve_bounded(self, frames: FrameStream) -> None:
        """Serve a stream until its peer goes, or does what it must not, which it is told."""
        try:
            await self._serve(frames)
        except UnavailableError:
            pass  # The peer is gone; what it held has been freed on the way out.
        except RemoteError as error:
            self.counters.broken += 1
            logger.info("%s broke the protocol: %s", frames.peer_id, error)
            with contextlib.suppress(UnavailableError):
                await frames.send(_refusal(NO_SESSION, error), self._served.send_timeout_s)

    async def _serve(self, frames: FrameStream) -> None:
        head = await self._head(frames)
        if head is None:
            return
        if (session := pushed_session(head)) is not None:
            await self._serve_pushes(frames, session)
            return
        match await self._in_time(frames.receive(MAX_HEADER_BYTES)):
            case None:
                return
            case Open() as opened:
                await self._serve_client(frames, opened)
            case Reveal() as asked:
                await self._serve_reveals(frames, asked)
            case _:
                raise SessionError("A stream begins with open or reveal (a client) or step (a previous stage).")

    async def _head(self, frames: FrameStream) -> bytes | None:
        """Wait for the beginning of the first frame; None: it does not come, or too many streams are silent already."""
        peer = frames.peer_id
        if self._silent[peer] >= _MAX_SILENT and self._silent[peer] >= _MAX_SILENT + self._num_awaited(peer):
            raise SessionError("Too many streams are open here that say nothing; send a frame on each, or close it.")
        self._silent[peer] += 1
        try:
            return await self._in_time(frames.peek(MAX_HEADER_BYTES))
        finally:
            self._silent[peer] -= 1
            if not self._silent[peer]:
                del self._silent[peer]

    async def _serve_reveals(self, frames: FrameStream, first: Reveal) -> None:
        """Open logs to the client whose stream this is, one after the other."""
        asked: Frame | None = first
        while asked is not None:
            if not isinstance(asked, Reveal):
                raise SessionError("A stream that begins with reveal carries nothing else.")
            try:
                await self._reveals.answer(frames, asked)
            except Refused as refusal:
                await frames.send(_refusal(asked.session, refusal), self._served.send_timeout_s)
            asked = await self._in_time(frames.receive(MAX_HEADER_BYTES))

    async def _pay_for_opening(self, num_bytes: int) -> None:
        await self._streams.pay(num_bytes, lambda: True)

    def _openable(self, session: bytes, peer: str) -> Openable | None:
        """Return what a peer may have opened of a session: its client, whether it runs or has ended."""
        live = self._sessions.get(session)
        if live is not None:
            return live if live.client.peer_id == peer and live.contract is not None else None
        return self._runner.admission.archive.find(session, peer, time.monotonic())

    def _num_awaited(self, peer: str) -> int:
        """Count the sessions that take steps from a peer and have had none: its streams are silent until then."""
        return sum(live.state.previous == peer and live.previous is None for live in self._sessions.values())

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
            await self._agree(live)
            await self._dial_next(live)
            agreement = live.contract.agreement if live.contract is not None else b""
            await self._outlets.tell_client(live, Accept(opened.session, codec_of(self._served.span.dtype), agreement))
            live.is_accepted = True
            self._tell_leaving(live)
            while (frame := await frames.receive(max_bytes)) is not None and not isinstance(frame, Close):
                await self._obey_client(live, frame)
            if frame is not None and live.contract is not None:
                await self._settle(live, live.contract, frames)
        except (RemoteError, Refused, ComputeFailed) as error:
            await self._end(live, error)
        finally:
            await self._end(live)

    async def _agree(self, live: Live) -> None:
        """Agree with the client on what is counted and signed for, where this server does that."""
        if self._contracts is None:
            return
        opened, client = live.state.opened, live.client.peer_id
        if not opened.previous:
            raise Refused(
                "bad_offer", "Where work is counted, steps come on a stream of their own: name a previous peer."
            )

        async def tell(frame: Sendable) -> None:
            await self._outlets.tell_client(live, frame)

        live.contract = await self._contracts.begin(opened, client, self._served.weights, tell)
        if not self._is_open(live):  # It has ended meanwhile, without what there was no contract for yet.
            await live.contract.close()
            raise UnavailableError("The session has ended.")

    async def _settle(self, live: Live, contract: Contract, frames: FrameStream) -> None:
        """Have the rest signed for by a client that has ended its session."""
        await self._outlets.vouch_last(live)
        settling = asyncio.create_task(contract.settle(lambda: live.previous is not None))
        try:
            while not settling.done():
                reading = asyncio.create_task(frames.receive(MAX_HEADER_BYTES))
                await asyncio.wait({settling, reading}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                    break
                frame = reading.result()
                if frame is None:
                    break
                if isinstance(frame, Cosign):
                    contract.cosigned(frame)
        finally:
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)

    async def _obey_client(self, live: Live, frame: Frame) -> None:
        match frame:
            case Cosign() if frame.session == live.state.opened.session and live.contract is not None:
                live.contract.cosigned(frame)
            case Step() if live.state.opened.previous:
                raise SessionError("Steps of this session come from the previous stage, not from the client.")
            case Step() if frame.session == live.state.opened.session:
                await self._run(live, frame)
            case Probe() if frame.session == live.state.opened.session:
                await self._outlets.tell_alive(live, frame.tag)
            case Adopt() if frame.session == live.state.opened.session:
                await self._adopt(live, frame)
            case Replay() if frame.session == live.state.opened.session:
                self._outlets.replace(live, frame)
            case _:
                raise SessionError("Only step and close of the stream's own session are allowed here.")

    async def _serve_pushes(self, frames: FrameStream, session: bytes) -> None:
        live = self._sessions.get(session)
        is_agreed = live is not None and (self._contracts is None or live.contract is not None)
        if live is None or live.state.previous != frames.peer_id or not is_agreed:
            raise SessionError("This stage has no session that takes steps from this peer.")
        if live.previous is not None:
            raise SessionError("The steps of this session come on another stream already.")
        live.previous = frames
        max_bytes = MAX_HEADER_BYTES + live.state.max_step_bytes
        try:
            while (frame := await frames.receive(max_bytes)) is not None:  # an idle session is ended from outside
                if not isinstance(frame, Step | Voucher) or frame.session != session:
                    raise SessionError("A push stream carries the steps of one session and nothing else.")
                if isinstance(frame, Step):
                    await self._run(live, frame)
                elif live.contract is not None:
                    live.contract.vouch(frame)
        except RemoteError as error:
            has_failed_inside = live.state.taken != live.handed_on  # Admitted, and not handed on: it cannot go on.
            if frames.peer_id == live.client.peer_id or has_failed_inside or not self._is_open(live):
                await self._end(live, error)
                return
            with contextlib.suppress(UnavailableError):  # The session is as it was; the client may have another stage.
                await self._outlets.tell_client(live, StageLost(session, frames.peer_id))
            raise
        except (Refused, ComputeFailed) as error:
            await self._end(live, error)
        except UnavailableError:  # The client is gone, or does not read.
            await self._end(live)
        finally:
            if live.previous is frames:
                live.previous = None
                if live.contract is not None:
                    live.contract.hear()

    async def _adopt(self, live: Live, order: Adopt) -> None:
        """Take steps from another previous stage from now on."""
        live.state.previous = order.previous
        if live.contract is not None:
            live.contract.adopt(order.previous, order.segment, order.sent, live.state.taken)
        old, live.previous = live.previous, None
        if old is not None:
            await old.close()
        await self._outlets.tell_alive(live, order.tag)

    def _open(self, frames: FrameStream, opened: Open) -> Live:
        """Take a session in; whoever calls this sees to its end."""
        if opened.session in self._sessions:
            raise Refused("duplicate", "A session with this id is open already; choose a random id.")
        live = self._runner.begin(opened, frames)
        self._sessions[opened.session] = live
        self.counters.sessions += 1
        return live

    async def _dial_next(self, live: Live) -> None:
        opened = live.state.opened
        if not opened.next:
            return
        live.next_peer = opened.next
        try:
            await self._outlets.connect(live, opened.next, opened.next_addresses)
        except DhtError as error:
            self.counters.refused += 1
            message = f"The next stage {opened.next} cannot be reached from here."
            raise Refused("next_unreachable", message, retryable=True) from error

    async def _run(self, live: Live, step: Step) -> None:
        async with live.running:
            if not self._is_open(live):
                raise UnavailableError("The session has ended.")
            live.last_used_s = time.monotonic()
            order = live.state.judge(step)
            if isinstance(order, Known):
                return
            if isinstance(order, Compute):
                if live.contract is not None:
                    live.contract.take(step)  # Raises before anything has changed.
                live.state.admit(order)
                if live.contract is not None and not live.contract.has_room(step):
                    await live.contract.allow(step)
            # Only now, when the step is admitted: whoever asks sees that it is not lost, but slow.
            await self._streams.pay(len(step.payload), lambda: self._is_open(live))
            known_positions = 0
            if isinstance(order, Compute):
                output, known_positions = await self._runner.compute(live, order)
                live.output = output if len(output[0]) <= _MAX_KEPT_BYTES else None
            elif live.output is None:
                raise SessionError("The output of a step this long is not kept: crop the session and step again.")
            else:
                output = live.output
            await self._outlets.hand_on(live, order, output, known_positions)
            if live.contract is not None and live.contract.may_be_due:
                await live.contract.check()

    def _is_open(self, live: Live) -> bool:
        return self._sessions.get(live.state.opened.session) is live

    async def _end(self, live: Live, error: NodeError | None = None) -> None:
        """End a session, unless it has ended: give its memory back, tell the client why, close every stream of it.

        All sessions end here. The tasks that serve its streams see them closed and return.
        """
        if not self._is_open(live):
            return
        session = live.state.opened.session
        del self._sessions[session]
        self._runner.end(live)
        if live.contract is not None:
            await live.contract.close(is_ours=_is_ours(error))
        if not self._sessions:
            self._is_empty.set()
        if live.relinking is not None:
            live.relinking.cancel()
        if error is not None:
            self.counters.broken += isinstance(error, RemoteError)
            with contextlib.suppress(UnavailableError):
                live.client.write(_refusal(session, error))  # not waiting: it may not be reading
            live.client.close_later(LAST_WORD_S)
        if live.next is not None:
            self._streams.leave(live.next)
        streams = (live.client if error is None else None, live.previous, live.next)
        await asyncio.gather(*(stream.close() for stream in streams if stream is not None))

    async def check_due(self) -> None:
        """Ask for the signatures that are due by the clock: an epoch ends for sessions at rest, too."""

        async def check(contract: Contract) -> None:
            with contextlib.suppress(UnavailableError):  # Its stream says so as well.
                await contract.check()

        agreed = [live.contract for live in self._sessions.values() if live.is_accepted and live.contract is not None]
        await asyncio.gather(*map(check, agreed))

    async def expire(self, now_s: float) -> int:
        """Close the sessions that have been idle for too long; return how many. Forget what ended long ago."""
        self._runner.admission.expire(now_s)
        idle = [live for live in self._sessions.values() if now_s - live.last_used_s > self._served.idle_timeout_s]
        refusal = Refused("idle", "The session was idle for too long; open it again.")
        await asyncio.gather(*(self._end(live, refusal) for live in idle))
        return len(idle)


_OUR_REFUSALS = frozenset({"draining", "busy", "failed", "lane"})
"""What ends a session whatever its client does. All other codes its client can bring about at will: it would have
worked for nothing as often as it liked."""


def _is_ours(error: NodeError | None) -> bool:
    """Say whether a session that ends by ``error`` ends by this server's doing; None: its client has ended it."""
    if isinstance(error, Refused):
        return error.code in _OUR_REFUSALS
    return isinstance(error, ComputeFailed)


def _refusal(session: bytes, error: NodeError) -> Refuse:
    if isinstance(error, Refused):
        return Refuse(session, error.code, str(error)[:512], error.retryable, int(error.retry_after_s * 1000))
    code = "failed" if isinstance(error, ComputeFailed) else "protocol"
    return Refuse(session, code, str(error)[:512], retryable=isinstance(error, ComputeFailed))
