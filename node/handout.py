"""Hand bytes out to members by their sha256, and read them from a member that has them.

    reader ──[sha256]──> holder          a stream of the protocol for each piece
           <──[state, size]──            0 here it is, 1 not here, 2 no time now
           <──size bytes──               at a bounded rate, and at a least one

The reader knows beforehand how much must come, and believes nothing before the hash is right. Some members may have
places of their own, so that strangers cannot keep them from it by reading. What the bytes are is not known here. Runs
in the event loop; looking them up, and hashes, in threads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from hashlib import sha256

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord, PeerUnreachable, ProtocolViolation
from dht.membership.members import read_message, write_message
from dht.swarm import Stream, Swarm
from node.errors import FalseBytes

MAX_READERS = 4
"""Strangers to whom pieces are handed out at once, and as many of those who come first."""
MAX_READERS_OF_PEER = 1
RATE_BYTES_PER_S = 2**23
"""At which one piece goes out at most."""
ANSWER_S = 10.0
"""That either side waits for the other's next message, or the next ``SPELL_BYTES`` of a piece."""
SPELL_BYTES = 2**19
"""Go out, and come in, within ``ANSWER_S`` each: whoever is slower than 51 KiB/s is given up."""
STREAM_S = 600.0
"""After which a stream is closed, however busy."""

_HERE, _NOT_HERE, _BUSY = range(3)
_MAX_MESSAGE_BYTES = 64
_PIECE_BYTES = 2**16


class Handout:
    """Hands out what a node has; ``start`` before others are told of it.

    Args:
        protocol: name of the streams.
        find: returns bytes by their sha256; called in a thread.
        first: returns peer ids of who has a place of its own for these bytes, by the same.
        stream_s: seconds after which a stream is closed, however busy.
    """

    def __init__(
        self,
        protocol: str,
        find: Callable[[bytes], bytes | None],
        *,
        first: Callable[[bytes], Collection[str]] = lambda _: (),
        stream_s: float = STREAM_S,
    ) -> None:
        self._protocol = protocol
        self._find = find
        self._first = first
        self._stream_s = stream_s
        self._strangers: Counter[str] = Counter()
        self._firsts: Counter[str] = Counter()

    @property
    def num_readers(self) -> int:
        """How many are being answered."""
        return self._strangers.total() + self._firsts.total()

    async def start(self, swarm: Swarm) -> None:
        """Answer members that ask."""
        await swarm.serve(self._protocol, self.handle)

    async def handle(self, stream: Stream) -> None:
        """Answer one question."""
        async with asyncio.timeout(ANSWER_S):
            asked = Fields(decode(await read_message(stream.reader, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_BYTES))
        name = asked.blob("sha256", 32)
        asked.end()
        peer = stream.peer_id
        readers = self._firsts if peer in self._first(name) else self._strangers
        num_own = self._strangers[peer] + self._firsts[peer]
        if num_own >= MAX_READERS_OF_PEER or readers.total() >= MAX_READERS:
            await write_message(stream.writer, encode([_BUSY, 0]))
        else:
            readers[peer] += 1
            try:
                async with asyncio.timeout(self._stream_s):
                    await self._hand_out(stream, name)
            finally:
                readers -= Counter([peer])  # In place, without names of those who have left.
        await stream.finish()

    async def _hand_out(self, stream: Stream, name: bytes) -> None:
        blob = await asyncio.to_thread(self._find, name)
        if blob is None:
            await write_message(stream.writer, encode([_NOT_HERE, 0]))
            return
        await write_message(stream.writer, encode([_HERE, len(blob)]))
        for at in range(0, len(blob), SPELL_BYTES):
            async with asyncio.timeout(ANSWER_S):
                await _send(stream, blob, at)


async def _send(stream: Stream, blob: bytes, start: int) -> None:
    """Send one spell of a piece."""
    for at in range(start, min(start + SPELL_BYTES, len(blob)), _PIECE_BYTES):
        await asyncio.sleep(_PIECE_BYTES / RATE_BYTES_PER_S if at else 0)
        stream.writer.write(blob[at : at + _PIECE_BYTES])
        await stream.writer.drain()


async def fetch_bytes(
    swarm: Swarm, peer_id: str, protocol: str, name: bytes, num_bytes: int, *, stream_s: float = STREAM_S
) -> bytes:
    """Have bytes from a member that hands them out.

    Args:
        swarm: entered.
        peer_id: the member.
        protocol: name of the streams.
        name: sha256 of what is wanted, 32 bytes.
        num_bytes: its size; whoever calls has bounded it, and nothing else is read.
        stream_s: seconds that all of it may take.

    Raises:
        PeerUnreachable: it does not answer, has no time, or does not have it.
        FalseBytes: what it sends is not what was asked for.
        DhtError: as for ``Swarm.dial``.
    """
    stream = await swarm.dial(peer_id, protocol)
    try:
        async with asyncio.timeout(stream_s):
            blob = await _ask(stream, name, num_bytes)
    except (TimeoutError, EOFError, OSError):
        raise PeerUnreachable(f"peer {peer_id} does not hand it out") from None
    except (BadRecord, ProtocolViolation) as error:
        raise FalseBytes(f"It answers with something else: {error}.") from None
    finally:
        await stream.close()
    if await asyncio.to_thread(lambda: sha256(blob).digest()) != name:
        raise FalseBytes("It hands out other bytes than those that the hash names.")
    return blob


async def _ask(stream: Stream, name: bytes, num_bytes: int) -> bytes:
    await write_message(stream.writer, encode([name]))
    async with asyncio.timeout(ANSWER_S):
        answer = Fields(decode(await read_message(stream.reader, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_BYTES))
    state, size = answer.uint("state", _BUSY), answer.uint("size", 2**32)
    answer.end()
    if state != _HERE:
        raise PeerUnreachable(f"peer {stream.peer_id} does not hand it out now")
    if size != num_bytes:
        raise FalseBytes("It hands out bytes of another size.")
    pieces = []
    while size:
        async with asyncio.timeout(ANSWER_S):
            pieces.append(await stream.reader.readexactly(min(size, SPELL_BYTES)))
        size -= len(pieces[-1])
    return b"".join(pieces)
