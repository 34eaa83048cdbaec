"""One direction of a proxied connection, and what a link is like. Runs in its proxy's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

PIECE_BYTES = 2**16
"""The largest piece that is carried at once."""
MAX_QUEUED_BYTES = 4 * 2**20
"""One direction of a connection is not read any further while so much of it is on the way."""
_SLOW_PIECE_S = 0.02
"""A slow link carries pieces that take so long, so that it trickles instead of halting."""
_BIT = 0x10


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


class Way:
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
        """When the link has sent all that was taken, by the monotonic clock, which is finer than the loop's."""

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
        self._free_s = max(self._free_s, time.monotonic()) + len(piece) / conditions.bytes_per_s
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
            while (left_s := due_s - time.monotonic()) > 0:
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
