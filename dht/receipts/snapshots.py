"""Sum up a window of receipts for those who will not read it all, and read what others have summed up.

    publisher                         DHT                          reader
    collect_receipts ──> digest ──> SNAPSHOT record ──> fetch
    SnapshotServer   <──────── stream: pages of envelopes ──────── read_content

What a publisher could leave out is found by ``spot_checks``; what it could put in is bounded by the signatures, all of
which are checked. The reader allocates nothing before it has come.
This file does not know who should publish, nor whose word counts. It runs on the event loop.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from hashlib import sha256

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord, PeerUnreachable, ProtocolViolation
from dht.identity import Identity, peer_id_to_bytes
from dht.membership.members import read_message, write_message
from dht.receipts.checking import SignatureChecker
from dht.receipts.reader import check_envelopes
from dht.receipts.totals import Newest
from dht.records import Kind, SignedRecord, seal
from dht.snapshot import NO_SCORES, Snapshot, digest_of
from dht.swarm import Stream, Swarm
from dht.work import MAX_EPOCH, Receipt, Slot

logger = logging.getLogger(__name__)

SNAPSHOT_PROTOCOL = "/efedllm/snapshot/1"

PAGE = 128
"""Envelopes of one page; they and their lengths fit into a message."""

MAX_PAGE_BYTES = 2**16 - 1

MAX_REQUEST_BYTES = 64

PAGES_AHEAD = 8
"""Pages that a reader asks for before the first has come."""

MAX_RECEIPTS = 2**17
"""Most receipts of a snapshot that is read or made: 50 MB of envelopes."""

MAX_READERS = 64
"""Streams that are served at once, with pages that are one copy for all; more are closed: who asks reads the DHT."""

MAX_READERS_OF_PEER = 2
"""Of these, streams of one peer."""

STREAM_S = 300.0
"""Seconds after which a stream is closed, however busy."""

PAGE_S = 10.0
"""Seconds that either side waits for the other's next message."""


@dataclass(frozen=True, slots=True)
class Content:
    """A snapshot's receipts, all of whose signatures are good and whose digest is the record's."""

    record: Snapshot
    receipts: tuple[SignedRecord, ...]

    @property
    def slots(self) -> dict[Slot, int]:
        """Newest ``seq`` of each slot."""
        return {receipt.slot: receipt.seq for receipt in Newest(_receipts(self.receipts))}


class SnapshotServer:
    """Publishes this node's snapshots and serves their content to members; keeps the newest one in memory."""

    def __init__(self, swarm: Swarm, identity: Identity) -> None:
        """Describe the server; ``start`` before anything is published.

        Args:
            swarm: Where.
            identity: Who vouches.
        """
        self._swarm = swarm
        self._identity = identity
        self._pages: list[bytes] = []
        self._epoch = -1
        self._readers: Counter[str] = Counter()

    async def start(self) -> None:
        """Answer members that ask for the content."""
        await self._swarm.serve(SNAPSHOT_PROTOCOL, self._serve)

    async def publish(self, window: range, receipts: Iterable[SignedRecord], scores: bytes = NO_SCORES) -> Snapshot:
        """Publish what was read of a window of epochs that has ended.

        Args:
            window: The epochs, none of them the present one.
            receipts: The newest of each slot, signatures checked.
            scores: Digest of the scores that follow, 32 bytes.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        return await self.publish_envelopes(window, (signed.envelope for signed in receipts), scores)

    async def publish_envelopes(self, window: range, receipts: Iterable[bytes], scores: bytes = NO_SCORES) -> Snapshot:
        """Publish as ``publish`` does, what is at hand as envelopes."""
        num_receipts, digest, pages = await asyncio.to_thread(_summed_up, receipts)
        record = Snapshot(self._identity.peer_id, window[0], window[-1], num_receipts, digest, scores)
        self._pages, self._epoch = pages, record.epoch
        await self._swarm.store(seal(record, self._identity, rules=self._swarm.validator.rules))
        return record

    async def _serve(self, stream: Stream) -> None:
        if self._readers[stream.peer_id] >= MAX_READERS_OF_PEER or self._readers.total() >= MAX_READERS:
            return
        self._readers[stream.peer_id] += 1
        try:
            async with asyncio.timeout(STREAM_S):
                await self._send_pages(stream)
        finally:
            self._readers -= Counter([stream.peer_id])

    async def _send_pages(self, stream: Stream) -> None:
        """Send the pages that are asked for: ``[epoch, page]`` to one page, empty where there is none."""
        while True:
            async with asyncio.timeout(PAGE_S):
                request = Fields(decode(await read_message(stream.reader, MAX_REQUEST_BYTES), MAX_REQUEST_BYTES))
            epoch, page = request.uint("epoch", MAX_EPOCH), request.uint("page", MAX_RECEIPTS)
            request.end()
            is_there = epoch == self._epoch and page < len(self._pages)
            async with asyncio.timeout(PAGE_S):
                await write_message(stream.writer, self._pages[page] if is_there else encode([]))


def _summed_up(receipts: Iterable[bytes]) -> tuple[int, bytes, list[bytes]]:
    """Say how many different envelopes there are, give their digest, and their pages: seconds where they are many."""
    envelopes = sorted(set(receipts), key=lambda each: sha256(each).digest())
    pages = [encode(envelopes[start : start + PAGE]) for start in range(0, len(envelopes), PAGE)]
    return len(envelopes), digest_of(envelopes), pages


async def read_record(swarm: Swarm, publisher: str, epoch: int) -> Snapshot | None:
    """Read what a peer vouches for of the window that ended with ``epoch``; None where there is nothing.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    for record in await swarm.fetch(Kind.SNAPSHOT, (peer_id_to_bytes(publisher),)):
        if isinstance(record, Snapshot) and record.epoch == epoch:
            return record
    return None


async def newest_record(swarm: Swarm, publisher: str, before: int) -> Snapshot | None:
    """Read what a peer vouches for of the newest window that it has summed up and that ended before epoch ``before``.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    found = await swarm.fetch(Kind.SNAPSHOT, (peer_id_to_bytes(publisher),))
    records = [record for record in found if isinstance(record, Snapshot) and record.epoch < before]
    return max(records, key=lambda record: record.epoch, default=None)


async def read_content(swarm: Swarm, record: Snapshot, checker: SignatureChecker) -> Content:
    """Have a snapshot's receipts from its publisher, and check everything that can be checked without the DHT.

    Raises:
        PeerUnreachable: The publisher does not answer, or has another snapshot by now.
        ProtocolViolation: What it sends is not what it has signed for.
        DaemonDied: Our own p2pd has ended.
    """
    if record.num_receipts > MAX_RECEIPTS:
        raise ProtocolViolation(f"a snapshot of {record.num_receipts} receipts is more than is read")
    stream = await swarm.dial(record.publisher, SNAPSHOT_PROTOCOL)
    try:
        envelopes = [envelope async for page in _pages(stream, record) for envelope in page]
    except (TimeoutError, EOFError, ConnectionError):
        raise PeerUnreachable(f"peer {record.publisher} ended the reading of its snapshot") from None
    except BadRecord as error:
        raise ProtocolViolation(f"a page of a snapshot is none: {error}") from None
    finally:
        await stream.close()
    if len(set(envelopes)) != record.num_receipts or await asyncio.to_thread(digest_of, envelopes) != record.digest:
        raise ProtocolViolation("a snapshot's receipts are not those that its publisher has signed for")
    rules = swarm.validator.rules
    good = [signed async for signed in check_envelopes(envelopes, rules, time.time(), checker)]
    if len(good) != record.num_receipts or not all(
        record.first_epoch <= receipt.epoch <= record.epoch for receipt in _receipts(good)
    ):
        raise ProtocolViolation("a snapshot holds what is no receipt of its window")
    return Content(record, tuple(good))


async def _pages(stream: Stream, record: Snapshot) -> AsyncIterator[list[bytes]]:
    num_pages = -(-record.num_receipts // PAGE)
    asked = 0
    for page in range(num_pages):
        while asked < min(num_pages, page + PAGES_AHEAD):
            await write_message(stream.writer, encode([record.epoch, asked]))
            asked += 1
        async with asyncio.timeout(PAGE_S):
            message = await read_message(stream.reader, MAX_PAGE_BYTES)
        fields = Fields(decode(message, MAX_PAGE_BYTES))
        envelopes = []
        while fields.more():
            envelopes.append(fields.some_bytes("envelope", Receipt.MAX_BYTES))
        if not envelopes:
            raise PeerUnreachable(f"peer {record.publisher} has another snapshot by now")
        yield envelopes


def _receipts(signed: Iterable[SignedRecord]) -> Iterable[Receipt]:
    return (each.record for each in signed if isinstance(each.record, Receipt))
