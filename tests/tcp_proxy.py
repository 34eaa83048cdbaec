"""A TCP proxy on this machine's loopback whose link can be made bad while it runs: what lies between two libp2p peers.

It carries bytes and knows nothing of what they mean; who dials it is told by its caller. Each proxy runs in a thread of
its own with one event loop, and every method may be called from any other thread.

    dialer ──> listener :port ──[ take ──> queue, at most MAX_QUEUED_BYTES ──> give, when it is due ]──> target
           <──                 <──[                      the same the other way                     ]──
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from node.client.loop_thread import LoopThread

HOST = "127.0.0.1"
MAX_QUEUED_BYTES = 4 * 2**20
"""One direction of a connection is not read any further while so much of it is on the way."""
MAX_CONNECTIONS = 256
"""At once; more are cut as they come."""
PIECE_BYTES = 2**16
_SLOW_PIECE_S = 0.02
"""A slow link carries pieces that take so long, so that it trickles instead of halting."""
_BIT = 0x10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time: the other side is told at once.


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a link is like."""

    delay_s: float = 0.0
    """Each way; half of what it adds to a round trip."""
    bytes_per_s: float = float("inf")
    """What one direction of one connection carries."""
    drops: bool = False
    """Bytes vanish and connections stay open. What has lost bytes is cut when the link no longer drops."""
    refuses: bool = False
    """Connections are cut, and new ones refused."""

    def worse(self, other: Conditions) -> Conditions:
        """Return the conditions between two ends that have ``self`` and ``other``."""
        return Conditions(
            max(self.delay_s, other.delay_s),
            min(self.bytes_per_s, other.bytes_per_s),
            self.drops or other.drops,
            self.refuses or other.refuses,
        )


GOOD = Conditions()


def hold_port() -> socket.socket:
    """Bind a free port without listening at it, so that nobody else is given it while those who know it use it (Linux).

    Whoever listens there meanwhile must set SO_REUSEADDR; asyncio and Go do.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):  # p2pd shares its port with nobody who has not asked for it as well.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, 0))
    return held


class TcpProxy:
    """Forwards connections to a port of this machine. Ended by ``close``, or with its context.

    Args:
        target_port: where whoever is behind the proxy listens, or will.
        name_of: names the dialer whose end of a connection has this port, None when unknown; called in the proxy's thread.
    """

    def __init__(self, target_port: int, name_of: Callable[[int], str | None] = lambda port: None) -> None:
        self._target_port = target_port
        self._name_of = name_of
        self._everyone, self._by_dialer = GOOD, dict[str, Conditions]()
        self._connections: set[_Connection] = set()
        self._carried = [0, 0]
        self._server: asyncio.Server | None = None
        self._held = hold_port()
        self.port: int = self._held.getsockname()[1]
        """Where dialers connect."""
        self._loop = LoopThread()
        self._loop.run(self._listen())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Bytes handed on to the target, and back, since the proxy began."""
        return self._carried[0], self._carried[1]

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    @property
    def num_queued_bytes(self) -> int:
        """Bytes that are on the way."""
        return sum(way.queued for connection in list(self._connections) for way in connection.ways)

    def set(self, everyone: Conditions, by_dialer: Mapping[str, Conditions] | None = None) -> None:
        """Change the link; returns when it is so. Bytes that are on the way already come as they would have come.

        Args:
            everyone: for all dialers but those below.
            by_dialer: by the name that ``name_of`` gives.
        """
        self._loop.run(self._change(everyone, dict(by_dialer or {})))

    def corrupt(self, dialer: str | None = None) -> None:
        """Flip a bit in the middle of the next piece of each direction of every connection, or of one dialer's."""
        self._loop.run(self._mark(dialer))

    def cut(self) -> None:
        """End every connection at once; new ones are taken."""
        self._loop.run(self._cut(lambda connection: True))

    def close(self) -> None:
        """End every connection, the listener and the thread; doing so twice is fine."""
        if self._loop.is_running:
            self._loop.run(self._end())
            self._loop.stop()
            self._held.close()

    # In the loop's thread.

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, self.port, reuse_address=True, limit=PIECE_BYTES)

    async def _change(self, everyone: Conditions, by_dialer: dict[str, Conditions]) -> None:
        self._everyone, self._by_dialer = everyone, by_dialer
        await self._cut(lambda connection: connection.is_hopeless(self._conditions(connection.dialer)))
        refuses_all = all(conditions.refuses for conditions in (everyone, *by_dialer.values()))
        if refuses_all and self._server is not None:
            self._server.close()
            self._server = None
        elif not refuses_all and self._server is None:
            await self._listen()

    def _conditions(self, dialer: str | None) -> Conditions:
        return self._by_dialer.get(dialer, self._everyone) if dialer is not None else self._everyone

    async def _mark(self, dialer: str | None) -> None:
        for connection in self._connections:
            if dialer in (None, connection.dialer):
                for way in connection.ways:
                    way.corrupts_next = True

    async def _cut(self, is_wanted: Callable[[_Connection], bool]) -> None:
        wanted = [connection for connection in self._connections if is_wanted(connection)]
        for connection in wanted:
            connection.cut()
        await asyncio.gather(*(connection.carried for connection in wanted), return_exceptions=True)

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut(lambda connection: True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialer = self._name_of(writer.get_extra_info("peername")[1])
        if self._conditions(dialer).refuses or len(self._connections) >= MAX_CONNECTIONS:
            _reset(writer)
            return
        connection = _Connection(dialer, reader, writer, self._count)
        self._connections.add(connection)
        try:
            await connection.carry(self._target_port, lambda: self._conditions(dialer))
        finally:
            self._connections.discard(connection)

    def _count(self, way: int, num_bytes: int) -> None:
        self._carried[way] += num_bytes


class _Connection:
    """One connection through a proxy, both ways."""

    def __init__(
        self,
        dialer: str | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        count: Callable[[int, int], None],
    ) -> None:
        self.dialer = dialer
        self.ways: tuple[_Way, ...] = ()
        self.carried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended."""
        self._reader, self._writers = reader, [writer]
        self._count = count
        self._work: asyncio.Task[None] | None = None

    def is_hopeless(self, conditions: Conditions) -> bool:
        """Say whether it must end under ``conditions``."""
        return conditions.refuses or (not conditions.drops and any(way.has_lost for way in self.ways))

    def cut(self) -> None:
        """End it; both sides are told at once."""
        if self._work is not None:
            self._work.cancel()

    async def carry(self, target_port: int, conditions: Callable[[], Conditions]) -> None:
        """Carry bytes until both sides have ended, or one has gone."""
        self._work = asyncio.create_task(self._carry(target_port, conditions))
        try:
            await asyncio.wait({self._work})
            if self._work.cancelled() or self._work.exception() is not None:
                for writer in self._writers:
                    _reset(writer)
            else:
                for writer in self._writers:
                    writer.close()
        finally:
            self.carried.set_result(None)

    async def _carry(self, target_port: int, conditions: Callable[[], Conditions]) -> None:
        reader, writer = await asyncio.open_connection(HOST, target_port, limit=PIECE_BYTES)
        self._writers.append(writer)
        self.ways = (
            _Way(self._reader, writer, conditions, lambda size: self._count(0, size)),
            _Way(reader, self._writers[0], conditions, lambda size: self._count(1, size)),
        )
        async with asyncio.TaskGroup() as group:
            for way in self.ways:
                group.create_task(way.take())
                group.create_task(way.give())


class _Way:
    """One direction of a connection: pieces are taken, wait in order until they are due, and are given on."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        conditions: Callable[[], Conditions],
        count: Callable[[int], None],
    ) -> None:
        self.queued = 0
        """Bytes on the way."""
        self.has_lost = False
        self.corrupts_next = False
        self._reader, self._writer = reader, writer
        self._conditions = conditions
        self._count = count
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._free_s = 0.0
        """When the link has sent all that was taken, by the loop's clock."""

    async def take(self) -> None:
        """Take pieces until the sender has ended."""
        piece = b"?"
        while piece:
            await self._has_room.wait()
            piece = await self._read()
            conditions = self._conditions()
            if conditions.drops or self.has_lost:
                self.has_lost = True
                continue
            self._put(self._spoilt(piece), conditions)

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(
                max(1, int(min(PIECE_BYTES, self._conditions().bytes_per_s * _SLOW_PIECE_S)))
            )
        except ConnectionError:
            if self._conditions().drops:
                return b""  # Where bytes vanish, so does the news that a side has gone.
            raise

    def _put(self, piece: bytes, conditions: Conditions) -> None:
        self._free_s = max(self._free_s, asyncio.get_running_loop().time()) + len(piece) / conditions.bytes_per_s
        self._pieces.put_nowait((self._free_s + conditions.delay_s, piece))
        self.queued += len(piece)
        if self.queued >= MAX_QUEUED_BYTES:
            self._has_room.clear()

    def _spoilt(self, piece: bytes) -> bytes:
        if not self.corrupts_next or not piece:
            return piece
        self.corrupts_next = False
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ _BIT]) + piece[middle + 1 :]

    async def give(self) -> None:
        """Give on each piece when it is due, the end of the direction too."""
        while True:
            due_s, piece = await self._pieces.get()
            if (left_s := due_s - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(left_s)
            if not piece:
                self._writer.write_eof()
                return
            self._writer.write(piece)
            await self._writer.drain()
            self._count(len(piece))
            self.queued -= len(piece)
            if self.queued < MAX_QUEUED_BYTES:
                self._has_room.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    ours = writer.get_extra_info("socket")
    if ours is not None:  # It is None once the transport has closed by itself.
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
