"""Hand evidence out to members by its sha256, and read it from whoever has made a claim.

    reader ──[sha256]──> accuser        a stream of /efedllm/evidence/1 for each piece
           <──[state, size]──           0 here it is, 1 not here, 2 no time now
           <──size bytes──              at a bounded rate, and at a least one

Members who have to judge the claim have places of their own, so that strangers cannot keep them from it by reading. The
reader knows from the claim how much must come, and believes nothing before the hash is right. Runs in the event loop;
the disk and hashes in threads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from hashlib import sha256

from dht.claim import Claim
from dht.codec import Fields, decode, encode
from dht.errors import BadRecord, PeerUnreachable, ProtocolViolation
from dht.membership.members import read_message, write_message
from dht.swarm import Stream, Swarm
from node.errors import FalseEvidence

EVIDENCE_PROTOCOL = "/efedllm/evidence/1"

MAX_READERS = 4
"""Strangers to whom pieces are handed out at once, and as many of those who have to judge."""
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


class EvidenceServer:
    """Hands out what this node has claimed with; ``start`` before the first claim.

    Args:
        find: returns evidence by its sha256; called in a thread.
        judges: returns who has to judge it, parties included, by the same; peer ids.
    """

    def __init__(
        self, find: Callable[[bytes], bytes | None], judges: Callable[[bytes], Collection[str]] = lambda _: ()
    ) -> None:
        self._find = find
        self._judges = judges
        self._strangers: Counter[str] = Counter()
        self._judging: Counter[str] = Counter()

    async def start(self, swarm: Swarm) -> None:
        """Answer members that ask."""
        await swarm.serve(EVIDENCE_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """Answer one question."""
        async with asyncio.timeout(ANSWER_S):
            asked = Fields(decode(await read_message(stream.reader, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_BYTES))
        name = asked.blob("evidence", 32)
        asked.end()
        peer = stream.peer_id
        readers = self._judging if peer in self._judges(name) else self._strangers
        num_own = self._strangers[peer] + self._judging[peer]
        if num_own >= MAX_READERS_OF_PEER or readers.total() >= MAX_READERS:
            await write_message(stream.writer, encode([_BUSY, 0]))
        else:
            readers[peer] += 1
            try:
                async with asyncio.timeout(STREAM_S):
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
    for at in range(start, min(start + SPELL_BYTES, len(blob)), _PIECE_BYTES):
        await asyncio.sleep(_PIECE_BYTES / RATE_BYTES_PER_S if at else 0)
        stream.writer.write(blob[at : at + _PIECE_BYTES])
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
            pieces.append(await stream.reader.readexactly(min(size, SPELL_BYTES)))
        size -= len(pieces[-1])
    return b"".join(pieces)
