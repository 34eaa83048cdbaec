"""How fast bytes travel between two members: one sends some to be thrown away and is sent as many back.

    asker                                 member
      num_bytes (u32), so many bytes ──>
                                     <── TAKEN | BUSY
                                     <── so many bytes, after TAKEN

The member sends no more than it has been sent, serves one asker at a time, and gives up on one that is slow, so nobody
gains by asking. The asker believes no time but its own clock's. It runs on the event loop.
"""

import asyncio
import time

from dht.errors import PeerUnreachable
from dht.membership.members import Membership, Stream

SPEED_PROTOCOL = "/efedllm/speed/1"

MAX_BYTES = 2**20
"""Sent each way at most."""

ANSWER_S = 10.0
"""Seconds that one asker may take."""

_FIRST_BYTES = 2**14
_ENOUGH_S = 0.25
_LEAST_S = 1e-4
_PIECE_BYTES = 2**16
_TAKEN = b"\x01"
_BUSY = b"\x00"


class Speed:
    """Answers those that measure, and measures."""

    def __init__(self, membership: Membership) -> None:
        """Take the streams among members."""
        self._membership = membership
        self._is_busy = False

    async def start(self) -> None:
        """Answer from now on."""
        await self._membership.serve(SPEED_PROTOCOL, self._answer)

    async def _answer(self, stream: Stream) -> None:
        if self._is_busy:
            stream.writer.write(_BUSY)
            return
        self._is_busy = True
        try:
            async with asyncio.timeout(ANSWER_S):
                num_bytes = int.from_bytes(await stream.reader.readexactly(4), "big")
                if num_bytes > MAX_BYTES:
                    return
                await _take(stream.reader, num_bytes)
                stream.writer.write(_TAKEN)
                await _give(stream.writer, num_bytes)
        except (TimeoutError, EOFError, ConnectionError):
            pass
        finally:
            self._is_busy = False

    async def measure(self, peer_id: str) -> float:
        """Measure what can be sent to a member and back, the slower of both ways, bytes/s.

        Small amounts first: as soon as one takes long enough to tell, no more is sent.

        Raises:
            PeerUnreachable: It does not answer in time, answers somebody else, or does not take part.
            NotAdmitted: It is not of this swarm.
        """
        round_trip_s, num_bytes = await self._exchange(peer_id, 0), _FIRST_BYTES
        while True:
            took_s = max(_LEAST_S, await self._exchange(peer_id, num_bytes) - round_trip_s)
            if took_s >= _ENOUGH_S or num_bytes >= MAX_BYTES:
                return num_bytes / took_s
            num_bytes = min(MAX_BYTES, 4 * num_bytes)

    async def _exchange(self, peer_id: str, num_bytes: int) -> float:
        """Return how long the slower way takes, s, with the round trip that ends the first one."""
        try:
            async with asyncio.timeout(ANSWER_S):
                stream = await self._membership.dial(peer_id, SPEED_PROTOCOL)
                try:
                    asked = time.perf_counter()
                    stream.writer.write(num_bytes.to_bytes(4, "big"))
                    await _give(stream.writer, num_bytes)
                    if await stream.reader.readexactly(1) != _TAKEN:
                        raise PeerUnreachable(f"peer {peer_id} measures with somebody else")
                    taken = time.perf_counter()
                    await _take(stream.reader, num_bytes)
                    return max(taken - asked, time.perf_counter() - taken)
                finally:
                    await stream.close()
        except (TimeoutError, EOFError, ConnectionError):
            raise PeerUnreachable(f"peer {peer_id} does not take part in measuring") from None


async def _take(reader: asyncio.StreamReader, num_bytes: int) -> None:
    while num_bytes > 0:
        piece = await reader.read(min(num_bytes, _PIECE_BYTES))
        if not piece:
            raise EOFError
        num_bytes -= len(piece)


async def _give(writer: asyncio.StreamWriter, num_bytes: int) -> None:
    for start in range(0, num_bytes, _PIECE_BYTES):
        writer.write(bytes(min(_PIECE_BYTES, num_bytes - start)))
        await writer.drain()
