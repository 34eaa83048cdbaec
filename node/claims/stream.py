"""Hand evidence out to members by its sha256, and read it from whoever has made a claim.

    reader ──[sha256]──> accuser        a stream of /efedllm/evidence/1 for each piece
           <──[state, size]──           0 here it is, 1 not here, 2 no time now
           <──size bytes──              at a bounded rate

The reader knows from the claim how much must come, and believes nothing before the hash is right. Runs in the event
loop; the disk and hashes in threads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

from dht.claim import Claim
from dht.codec import Fields, decode, encode
from dht.errors import BadRecord, PeerUnreachable, ProtocolViolation
from dht.membership.members import read_message, write_message
from dht.swarm import Stream, Swarm
from node.errors import FalseEvidence

EVIDENCE_PROTOCOL = "/efedllm/evidence/1"

MAX_READERS = 4
"""Pieces that are handed out at once."""
MAX_READERS_OF_PEER = 1
RATE_BYTES_PER_S = 2**23
"""At which one piece goes out at most."""
ANSWER_S = 10.0
"""That either side waits for the other's next message."""
STREAM_S = 600.0
"""After which a stream is closed, however busy."""

_HERE, _NOT_HERE, _BUSY = range(3)
_MAX_MESSAGE_BYTES = 64
_PIECE_BYTES = 2**16


class EvidenceServer:
    """Hands out what this node has claimed with; ``start`` before the first claim.

    Args:
        find: returns evidence by its sha256; called in a thread.
    """

    def __init__(self, find: Callable[[bytes], bytes | None]) -> None:
        self._find = find
        self._readers: Counter[str] = Counter()

    async def start(self, swarm: Swarm) -> None:
        """Answer members that ask."""
        await swarm.serve(EVIDENCE_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """Answer one question."""
        async with asyncio.timeout(ANSWER_S):
            asked = Fields(decode(await read_message(stream.reader, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_BYTES))
        name = asked.blob("evidence", 32)
        asked.end()
        if self._readers[stream.peer_id] >= MAX_READERS_OF_PEER or self._readers.total() >= MAX_READERS:
            await write_message(stream.writer, encode([_BUSY, 0]))
        else:
            self._readers[stream.peer_id] += 1
            try:
                async with asyncio.timeout(STREAM_S):
                    await self._hand_out(stream, name)
            finally:
                self._readers -= Counter([stream.peer_id])
        await stream.finish()

    async def _hand_out(self, stream: Stream, name: bytes) -> None:
        blob = await asyncio.to_thread(self._find, name)
        if blob is None:
            await write_message(stream.writer, encode([_NOT_HERE, 0]))
            return
        await write_message(stream.writer, encode([_HERE, len(blob)]))
        for at in range(0, len(blob), _PIECE_BYTES):
            await asyncio.sleep(_PIECE_BYTES / RATE_BYTES_PER_S if at else 0)
            stream.writer.write(blob[at : at + _PIECE_BYTES])
            async with asyncio.timeout(ANSWER_S):
                await stream.writer.drain()


async def fetch_evidence(swarm: Swarm, claim: Claim) -> bytes:
    """Have the evidence of a claim from its author.

    Raises:
        PeerUnreachable: it does not answer, has no time, or does not have it.
        FalseEvidence: what it sends is not what the claim names.
        DhtError: as for ``Swarm.dial``.
    """
    stream = await swarm.dial(claim.accuser, EVIDENCE_PROTOCOL)
    try:
        async with asyncio.timeout(STREAM_S):
            blob = await _ask(stream, claim)
    except (TimeoutError, EOFError, OSError):
        raise PeerUnreachable(f"peer {claim.accuser} does not hand out its evidence") from None
    except (BadRecord, ProtocolViolation) as error:
        raise FalseEvidence(f"Its author answers with something else: {error}.") from None
    finally:
        await stream.close()
    if await asyncio.to_thread(lambda: sha256(blob).digest()) != claim.evidence:
        raise FalseEvidence("It is not what the claim names.")
    return blob


async def _ask(stream: Stream, claim: Claim) -> bytes:
    await write_message(stream.writer, encode([claim.evidence]))
    async with asyncio.timeout(ANSWER_S):
        answer = Fields(decode(await read_message(stream.reader, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_BYTES))
    state, size = answer.uint("state", _BUSY), answer.uint("size", 2**32)
    answer.end()
    if state != _HERE:
        raise PeerUnreachable(f"peer {claim.accuser} does not hand out its evidence now")
    if size != claim.evidence_bytes:
        raise FalseEvidence("It has another size than the claim says.")
    pieces = []
    while size:
        async with asyncio.timeout(ANSWER_S):
            pieces.append(await stream.reader.readexactly(min(size, _PIECE_BYTES)))
        size -= len(pieces[-1])
    return b"".join(pieces)
