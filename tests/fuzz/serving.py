"""A handler without sockets, tensors or waiting: streams in memory, a span that gives zeros, a clock that jumps.

Everything else is real: sessions, slots, logs, contracts, commitments, signatures. What peers do is up to the caller.
"""

import asyncio
import contextlib
import gc
import math
import selectors
import struct
from collections import deque
from types import SimpleNamespace

import torch

import node.serve.contract as contract_module
from dht.errors import DhtError, PeerUnreachable
from dht.identity import Identity
from dht.rules import Rules
from dht.work import WorkKind
from node.errors import ComputeFailed
from node.serve.admission import Served
from node.serve.contracts import Contracts
from node.serve.handler import Handler
from node.wire import IDS, LENGTH_BYTES, LOGITS, Sendable, decode, encode, payload_bytes

HIDDEN = 4
NUM_BLOCKS = 4
VOCABULARY = 100
MANIFEST = bytes(range(32))
CACHE_POSITIONS = 2048
LOG_BYTES = 2**16
NOW = 1_800_000_000.0
RULES = Rules(epoch_s=1000)
SERVER, CLIENT, STAGE, NEXT = (Identity.from_seed(bytes([20 + number]) * 32) for number in range(4))
IDLE_S, SEND_S = 600.0, 30.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """Nothing here waits for the outside, so when nothing is left to do it is the time of the next timer."""

    def __init__(self) -> None:
        super().__init__(_Jump(self))
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[object]:
        assert timeout is not None, "everything waits for what will never come"
        self._loop.now_s += max(0.0, timeout)
        return super().select(0)


class Clock:
    """Stands for the module ``time`` in the contract."""

    def __init__(self, loop: JumpingLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.now_s

    def time(self) -> float:
        return NOW + self._loop.now_s - 1000.0


class Transport:
    """The buffer of a stream in memory: full, when its other side does not read."""

    def __init__(self) -> None:
        self.is_stuck = False

    def get_write_buffer_size(self) -> int:
        return 2**20 if self.is_stuck else 0

    def abort(self) -> None:
        """Do nothing; the stream has been closed before."""


class Writer:
    """What a side writes is told frame by frame to the other one."""

    def __init__(self, stream: "MemoryStream") -> None:
        self.transport = Transport()
        self._stream = stream

    def is_closing(self) -> bool:
        return self._stream.is_closed

    def write(self, data: bytes) -> None:
        if self._stream.is_closed:
            raise OSError("closed")
        self._stream.written += data

    async def drain(self) -> None:
        while self.transport.is_stuck and not self._stream.is_closed:
            await asyncio.sleep(1.0)

    def close(self) -> None:
        self._stream.shut()


class MemoryStream:
    """One stream as the server holds it."""

    def __init__(self, peer_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.peer_id = peer_id
        self.reader = asyncio.StreamReader(limit=2**16, loop=loop)
        self.writer = Writer(self)
        self.written = bytearray()
        self.is_closed = self.has_ended = False

    def sends(self, data: bytes) -> None:
        """The peer sends bytes."""
        if not (self.is_closed or self.has_ended):
            self.reader.feed_data(data)

    def ends(self) -> None:
        """The peer sends no more."""
        if not (self.is_closed or self.has_ended):
            self.has_ended = True
            self.reader.feed_eof()

    def shut(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if not self.has_ended:
                self.reader.feed_eof()

    async def finish(self) -> None:
        self.shut()

    async def close(self) -> None:
        self.shut()

    def frames(self) -> list[object]:
        """Take what the server has written so far."""
        taken = []
        while len(self.written) >= LENGTH_BYTES:
            (size,) = struct.unpack(">I", self.written[:LENGTH_BYTES])
            if len(self.written) < LENGTH_BYTES + size:
                break
            taken.append(decode(bytes(self.written[LENGTH_BYTES : LENGTH_BYTES + size])))
            del self.written[: LENGTH_BYTES + size]
        return taken


def framed(frame: Sendable) -> bytes:
    head, payload = encode(frame)
    return head + bytes(payload)


class Arena:
    """Memory for caches, of which there is none."""

    num_positions = CACHE_POSITIONS

    def place(self, start: int, rows: int, capacity: int) -> list[None]:
        assert 0 <= start < self.num_positions
        assert start + rows * capacity <= self.num_positions
        return [None] * NUM_BLOCKS


class FakeSpan:
    """Four blocks that compute nothing."""

    start, end, state, state_positions = 0, NUM_BLOCKS, None, 0
    dtype, device, cache_bytes_per_position = torch.float32, torch.device("cpu"), 64

    def view(self, start: int, end: int) -> "FakeSpan":
        assert self.start <= start < end <= self.end
        return self

    def new_cache(self, max_length: int, rows: int, buffers: object) -> SimpleNamespace:
        assert rows >= 1
        return SimpleNamespace(length=0, max_length=max_length, buffers=buffers)


class FakeEngine:
    """Answers after a while with zeros of the right size; fails when it is told to."""

    cpu_s = 0.0

    def __init__(self) -> None:
        self.takes_s = 0.0
        self.fails = False
        self.num_running = 0

    async def run(self, job: object) -> tuple[memoryview, tuple[int, ...]]:
        self.num_running += 1
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.num_running -= 1
        if self.fails:
            raise ComputeFailed("as told")
        step, ends = job._order.step, job._computation.ends  # type: ignore[attr-defined]
        rows, tokens, _ = step.shape
        if ends is not None and ends.answers:
            codec = LOGITS if ends._top else IDS
            shape = (rows, step.logits_to_keep, ends._top or 1)
        else:
            codec, shape = ends.codec if ends is not None else step.codec, (rows, tokens, HIDDEN)
        return memoryview(bytes(payload_bytes(codec, shape))), shape


class FakeLedger:
    """Numbers and receipts in memory."""

    def __init__(self) -> None:
        self.ledger = self
        self.signed_tokens = 0
        self.envelopes: deque[bytes] = deque(maxlen=64)
        self.unsigned_ends = 0
        self.standing_changes: deque[int] = deque(maxlen=64)
        self.last: dict[object, int] = {}
        self.fault: DhtError | None = None
        """Raised by everything that is asked of it."""

    def reserve_in_memory(self, own: str, slot: object, seq: int) -> int:
        if self.fault is not None:
            raise self.fault
        taken = max(self.last.get((own, slot), 0) + 1, seq)
        self.last[own, slot] = taken
        return taken

    def needs_numbers(self, own: str, slot: object) -> bool:
        del own, slot
        return True

    def reserve_ahead(self, own: str, slot: object) -> None:
        """Do nothing: all numbers are in memory."""

    async def ask(self, question):
        await asyncio.sleep(0.01)  # Another thread: whatever is on its way comes first.
        if self.fault is not None:
            raise self.fault
        return question(self)

    def history_of(self, own: str, consumer: str) -> dict[WorkKind, int]:
        del own, consumer
        return {WorkKind.DECODE: self.signed_tokens}

    def newest_of(self, own: str, slot: object) -> None:
        del own, slot

    async def append(self, own: str, envelope: bytes) -> bool:
        del own
        await asyncio.sleep(0.01)
        if self.fault is not None:
            raise self.fault
        self.envelopes.append(envelope)
        return True

    def standing(self, own: str, consumer: str) -> tuple[int, int]:
        del own, consumer
        return 0, 0

    def note_unsigned_end(self, own: str, end: object) -> None:
        del own, end
        self.unsigned_ends += 1

    def change_unsigned(self, own: str, consumer: str, change: int) -> None:
        del own, consumer
        self.standing_changes.append(change)


class Serving:
    """A handler with its surroundings. Ended by ``end``, which says whether anything has stayed behind."""

    def __init__(self, *, counts: bool = True, offers_ends: bool = False) -> None:
        self.loop = JumpingLoop()
        self.complaints: list[str] = []
        self.raised: list[BaseException] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self.clock = Clock(self.loop)
        self._time, contract_module.time = contract_module.time, self.clock  # type: ignore[assignment]
        self.engine, self.ledger = FakeEngine(), FakeLedger()
        self.contracts = Contracts(SERVER, self.ledger, RULES, self.clock.time) if counts else None  # type: ignore[arg-type]
        ends = SimpleNamespace(embeds=True, heads=True, vocab_size=VOCABULARY) if offers_ends else None
        served = Served(
            FakeSpan(), MANIFEST, HIDDEN, "float32", NUM_BLOCKS, ends, 4, None, IDLE_S, SEND_S  # type: ignore[arg-type]
        )  # fmt: skip
        self.handler = Handler(
            served, self.engine, self._dial, Arena(), None, LOG_BYTES, self.contracts  # type: ignore[arg-type]
        )  # fmt: skip
        self.streams: list[MemoryStream] = []
        """Opened by peers."""
        self.dialled: deque[MemoryStream] = deque(maxlen=64)
        self.dial_takes_s = 0.0
        self.dial_fails = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def _dial(self, peer_id: str, protocol: str, *, addresses: object = (), timeout_s: float = 5.0):
        del protocol, addresses, timeout_s
        assert peer_id, "nobody can be dialled without an id"
        await asyncio.sleep(self.dial_takes_s)
        if self.dial_fails:
            raise PeerUnreachable("as told")
        self.dialled.append(MemoryStream(peer_id, self.loop))
        return self.dialled[-1]

    def open_stream(self, peer: Identity) -> MemoryStream:
        """A peer opens a stream."""
        stream = MemoryStream(peer.peer_id, self.loop)
        self.streams.append(stream)
        task = self.loop.create_task(self.handler.handle(stream))  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return stream

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.raised.append(error)

    def turn(self, seconds: float = 0.0) -> None:
        """Let the server work for a while, at least until it has looked at everything that came."""
        self.loop.run_until_complete(self._turn(seconds))
        self.check()

    async def _turn(self, seconds: float) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        if seconds:
            await asyncio.sleep(seconds)

    def check(self) -> None:
        """Nothing was raised, and the books are in order."""
        if self.raised:
            raise AssertionError("a stream's handler raised what it must not") from self.raised[0]
        assert not self.complaints, self.complaints
        handler, slots = self.handler, self.handler.slots
        leased = sum(slot.size for live in handler._sessions.values() for slot in live.slots)
        assert handler.num_sessions == handler._runner.admission.num_sessions <= 4
        assert slots.total - slots.free >= leased
        assert slots.total - slots.free == leased or self.engine.num_running
        promised = sum(live.log_bytes for live in handler._sessions.values())
        admission = handler._runner.admission
        assert admission._log_bytes_free == LOG_BYTES - promised - admission.archive.num_bytes

    def end(self) -> None:
        """All peers go; whatever they have done, nothing of it is left."""
        try:
            for stream in (*self.streams, *self.dialled):
                stream.writer.transport.is_stuck = False
                stream.ends()
            self.engine.takes_s = self.dial_takes_s = 0.0
            self.turn(2 * IDLE_S)
            handler = self.handler
            assert handler.num_sessions == 0
            assert handler.num_streams == 0
            assert handler.slots.free == handler.slots.total
            handler._runner.admission.expire(math.inf)
            assert handler._runner.admission._log_bytes_free == LOG_BYTES
            assert all(stream.is_closed for stream in (*self.streams, *self.dialled))
            if self.contracts is not None:
                assert not [lane for lane in self.contracts._lanes._lanes.values() if lane.is_open]
                assert not self.contracts.desk._working
            assert not asyncio.all_tasks(self.loop), "something still runs"
            gc.collect(0)
            self.check()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave the loop as it is to be left, also after a failure."""
        contract_module.time = self._time  # type: ignore[assignment]
        if self.loop.is_closed():
            return
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()
