"""Where a stage's outputs go: to the next stage, to one that takes its place, or to the client; and the log of them.

Runs in the event loop. What a session may be told is checked before (``session``, ``handler``).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dht.errors import DhtError
from node.errors import SessionError, UnavailableError
from node.serve.archive import Ration
from node.serve.bandwidth import Bandwidth
from node.serve.computation import Computation, Output
from node.serve.contract import Contract
from node.serve.session import Compute, Order, StageSession
from node.serve.slots import Slot
from node.step_log import StepLog
from node.transport import ByteStream, FrameStream
from node.wire import PROTOCOL, Alive, Replay, Result, Sendable, StageLost, Step, Voucher


class Dialer(Protocol):
    """Opens a stream to a peer: ``dht.swarm.Swarm.dial``."""

    def __call__(
        self, peer_id: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Awaitable[ByteStream]:
        """Return an open stream to ``peer_id``."""


@dataclass
class Live:
    """A running session with everything it holds."""

    state: StageSession
    computation: Computation
    client: FrameStream
    """The client's control stream."""
    last_used_s: float
    slots: list[Slot] = field(default_factory=list)
    """Where its cache stands; two while its number of rows changes."""
    rows: int = 1
    """Rows that its cache has."""
    is_accepted: bool = False
    """Whether the client has been told that the session is open."""
    is_computing: bool = False
    """Whether a step is in the engine, which writes into the slots until it returns."""
    previous: FrameStream | None = None
    """The stream on which the previous stage pushes steps, while there is one."""
    next: FrameStream | None = None
    """The stream on which outputs are pushed to the next stage; None while there is none that takes them."""
    next_peer: str = ""
    """The peer that outputs are pushed to."""
    log: StepLog | None = None
    """What has been handed on, for a stage that takes the next one's place; None: outputs go to the client."""
    log_bytes: int = 0
    """Memory promised to the log."""
    ration: Ration = field(default_factory=Ration)
    """What its client has had opened of the log."""
    handed_on: int = 0
    """Steps whose outputs have been handed on; those answered before the session was opened here count with the end of
    their history."""
    running: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a step is run: one at a time, also where a new previous stage follows an old one."""
    handing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while outputs are handed on, so that the log and the next stage see them in the same order."""
    relinking: asyncio.Task[None] | None = None
    """Hands the log over to another next stage."""
    output: Output | None = None
    """The last step's output, for a repeated step."""
    contract: Contract | None = None
    """What the session is bound by; None: nothing, it is not counted."""

    def count(self, step: Step) -> None:
        """Count a step, or the end of a history, whose output has been handed on for the first time."""
        if not step.replay:
            self.handed_on = max(self.handed_on, self.state.opened.steps) + 1
        elif step.number:
            self.handed_on = step.number


class Streams:
    """The streams of a server, the bytes of those that have ended, and how many may be moved in a second."""

    def __init__(self, bandwidth: Bandwidth | None = None) -> None:
        self._bandwidth = bandwidth or Bandwidth()
        self._turn = asyncio.Lock()
        """Who pays waits for it share by share, so that sessions take turns."""
        self._open: set[FrameStream] = set()
        self._bytes_in = self._bytes_out = 0

    @property
    def num_open(self) -> int:
        """Streams open now."""
        return len(self._open)

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """Bytes read from and written to all streams so far."""
        num_in = self._bytes_in + sum(stream.bytes_in for stream in self._open)
        return num_in, self._bytes_out + sum(stream.bytes_out for stream in self._open)

    async def pay(self, num_bytes: int, is_wanted: Callable[[], bool]) -> None:
        """Wait until the donor's bound lets ``num_bytes`` more be moved.

        Raises:
            UnavailableError: nobody wants them any more.
        """
        share = self._bandwidth.share_bytes
        while share and num_bytes > 0:
            if not is_wanted():
                raise UnavailableError("The session has ended.")
            async with self._turn:
                await asyncio.sleep(self._bandwidth.delay_s(min(share, num_bytes), time.monotonic()))
            num_bytes -= share

    async def close(self) -> None:
        """End all streams."""
        await asyncio.gather(*(stream.close() for stream in list(self._open)))

    def enter(self, stream: FrameStream) -> None:
        """Count a stream from now on."""
        self._open.add(stream)

    def leave(self, stream: FrameStream) -> None:
        """Note that a stream ends; doing so twice is fine."""
        if stream in self._open:
            self._open.remove(stream)
            self._bytes_in += stream.bytes_in
            self._bytes_out += stream.bytes_out


class Outlets:
    """Hands sessions' outputs on.

    Args:
        dial: opens streams to next stages.
        send_timeout_s: who does not read for so long is given up.
        streams: counts them.
        is_open: says whether a session is running.
    """

    def __init__(self, dial: Dialer, send_timeout_s: float, streams: Streams, is_open: Callable[[Live], bool]) -> None:
        self._dial = dial
        self._send_timeout_s = send_timeout_s
        self._streams = streams
        self._is_open = is_open

    async def hand_on(self, live: Live, order: Order, output: Output, known_positions: int = 0) -> None:
        """Hand the output of a step on, and keep it for whoever takes the next stage's place.

        Args:
            live: the session.
            order: the step.
            output: what it gives.
            known_positions: positions of it that were not computed.

        Raises:
            UnavailableError: the client, whose it is, is gone.
        """
        (payload, shape), step, codec, log = output, order.step, live.state.output_codec, live.log
        contract = live.contract if isinstance(order, Compute) else None
        is_new = isinstance(order, Compute) and not step.replay
        if step.replay != 1:  # Before it counts as handed on: the next stage is not late meanwhile.
            await self._pay(live, len(payload))
        if log is None:
            if contract is not None:
                contract.give(step, output, codec)
                contract.count(step, 0 if step.replay else len(payload), known_positions)
            if not step.replay:
                await self.tell_client(live, Result(step.session, step.position, shape, codec, payload))
            if is_new or step.replay:
                live.count(step)
            return
        pushed = dataclasses.replace(step, shape=shape, codec=codec, payload=payload, replay=max(0, step.replay - 1))
        async with live.handing:
            vouchers = contract.give(step, output, codec) if contract is not None else []
            if contract is not None:
                contract.count(step, len(payload) if step.replay != 1 else 0, known_positions)
            if step.replay:
                log.append_history(shape, payload)
                live.count(step)
            elif is_new:
                log.append(pushed)
                live.count(step)
            is_wanted = not step.replay or pushed.replay
            if not is_wanted or live.next is None:  # Without a next stage the client knows: it will name another.
                return
            try:
                await self._push(live, *vouchers, pushed)
            except UnavailableError:
                await self._lose(live)

    async def vouch_last(self, live: Live) -> None:
        """Sign towards the next stage for the session's last chunk."""
        if live.contract is not None:
            async with live.handing:
                vouchers = live.contract.seal()
                if live.next is not None:
                    with contextlib.suppress(UnavailableError):
                        await self._push(live, *vouchers)

    async def _push(self, live: Live, *frames: Step | Voucher) -> None:
        """Send to the next stage; raises UnavailableError where there is none that takes it."""
        stream = live.next  # It may have been dropped meanwhile.
        if stream is None:
            raise UnavailableError("The next stage was dropped.")
        for frame in frames:
            await stream.send(frame, self._send_timeout_s)

    async def _pay(self, live: Live, num_bytes: int) -> None:
        await self._streams.pay(num_bytes, lambda: self._is_open(live))

    async def tell_client(self, live: Live, frame: Sendable) -> None:
        """Send a frame to a session's client.

        Raises:
            UnavailableError: it is gone, or does not read.
        """
        await live.client.send(frame, self._send_timeout_s)

    async def tell_alive(self, live: Live, tag: int) -> None:
        """Give a session's client the sign of life that it asked for with ``tag``."""
        await self.tell_client(live, Alive(live.state.opened.session, tag, live.state.taken, live.handed_on))

    async def connect(self, live: Live, peer_id: str, addresses: Sequence[str]) -> None:
        """Open the stream to a next stage.

        Raises:
            DhtError: it cannot be reached.
            UnavailableError: the session has ended meanwhile.
        """
        stream = FrameStream(await self._dial(peer_id, PROTOCOL, addresses=addresses))
        if not self._is_open(live):
            await stream.close()
            raise UnavailableError("The session has ended.")
        live.next = stream
        self._streams.enter(stream)

    def replace(self, live: Live, order: Replay) -> None:
        """Begin to hand outputs on to another next stage, which is told everything from the beginning."""
        if live.log is None:
            raise SessionError("The last stage has none behind it.")
        if not order.next:
            raise SessionError("Outputs are handed on to a stage that has a name.")
        if order.answered > live.log.count:
            raise SessionError(f"{live.log.count} steps have been handed on here; {order.answered} cannot be answered.")
        if live.relinking is not None:
            live.relinking.cancel()
        live.relinking = asyncio.create_task(self._replay(live, live.log, order))

    async def _replay(self, live: Live, log: StepLog, order: Replay) -> None:
        await self.drop(live)  # Whoever waits for it to read gives up.
        async with live.handing:
            live.next_peer = order.next
            try:
                await self.connect(live, order.next, order.next_addresses)
                if live.contract is not None:
                    live.contract.relink(order.segment)
                for step in log.replay(order.answered, order.stages):
                    await self._pay(live, len(step.payload))
                    vouchers = live.contract.resend(step) if live.contract is not None else []
                    await self._push(live, *vouchers, step)
                await self.tell_alive(live, order.tag)
            except (DhtError, UnavailableError):
                await self._lose(live)

    async def drop(self, live: Live) -> None:
        """End the stream to the next stage, if there is one."""
        stream, live.next = live.next, None
        if stream is not None:
            self._streams.leave(stream)
            await stream.close()

    async def _lose(self, live: Live) -> None:
        """Tell the client that the next stage does not take what it is given."""
        await self.drop(live)  # Nothing more is queued for it.
        with contextlib.suppress(UnavailableError):
            await self.tell_client(live, StageLost(live.state.opened.session, live.next_peer))
