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
from types import TracebackType
from typing import Self

from node.client.loop_thread import LoopThread
from tests.churn.way import GOOD, PIECE_BYTES, Conditions, Way

HOST = "127.0.0.1"
MAX_CONNECTIONS = 256
"""At once; more are cut as they come."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for no time: the other side is told at once.


def hold_port() -> socket.socket:
    """Bind a free port without listening at it, so that nobody else is given it while those who know it use it (Linux).

    Whoever listens there meanwhile must set SO_REUSEADDR; asyncio and Go do.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    return held


class TcpProxy:
    """Forwards connections to a port of this machine. Ended by ``close``, or with its context.

    Args:
        target_port: where whoever is behind the proxy listens, or will.
        name_of: names the dialer whose end of a connection has this port; None: unknown. Called in the proxy's thread.
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
        """Connections that are open, to the target too."""
        return sum(bool(connection.ways) for connection in list(self._connections))

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
        peer = writer.get_extra_info("peername")
        if peer is None:  # It has gone already.
            writer.transport.abort()
            return
        dialer = self._name_of(peer[1])
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
        self.ways: tuple[Way, ...] = ()
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
            Way(self._reader, writer, conditions, lambda size: self._count(0, size)),
            Way(reader, self._writers[0], conditions, lambda size: self._count(1, size)),
        )
        async with asyncio.TaskGroup() as group:
            for way in self.ways:
                group.create_task(way.take())
                group.create_task(way.give())


def _reset(writer: asyncio.StreamWriter) -> None:
    ours = writer.get_extra_info("socket")
    if ours is not None:  # It is None once the transport has closed by itself.
        with contextlib.suppress(OSError):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
