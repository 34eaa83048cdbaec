"""A window of receipts from one peer: complete, and signed for."""

import asyncio
import contextlib
import threading
import time
from dataclasses import replace

import pytest

from dht.codec import encode
from dht.errors import PeerUnreachable, ProtocolViolation
from dht.identity import Identity
from dht.receipts.checking import SignatureChecker
from dht.receipts.snapshots import (
    MAX_READERS_OF_PEER,
    PAGE,
    SNAPSHOT_PROTOCOL,
    SnapshotServer,
    read_content,
    read_record,
)
from dht.records import Envelope, place
from dht.rules import DEFAULT_RULES
from dht.snapshot import digest_of
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.receipts.made import sealed

P, C, D, STRANGER = (Identity.ephemeral() for _ in range(4))


def window() -> range:
    epoch = DEFAULT_RULES.epoch_of(time.time())
    return range(epoch - 2, epoch)


def done(count: int, provider=P, consumer=C):
    return [sealed(provider, consumer, lane=lane, epochs_ago=1 + lane % 2) for lane in range(count)]


@pytest.fixture
async def stage():
    async with testnet(3) as (publisher, other, reader), SignatureChecker() as checker:
        server = SnapshotServer(publisher, publisher._identity)
        await server.start()
        yield publisher, other, reader, server, checker


async def test_a_newcomer_reads_what_a_publisher_has_read(stage):
    publisher, _, reader, server, checker = stage
    receipts = done(2 * PAGE + 7)
    record = await server.publish(window(), [*receipts, receipts[0]])
    assert await read_record(reader, publisher.peer_id, window()[-1]) == record
    assert await read_record(reader, publisher.peer_id, window()[0]) is None
    content = await read_content(reader, record, checker)
    assert {signed.envelope for signed in content.receipts} == {signed.envelope for signed in receipts}


async def test_an_empty_window_is_a_snapshot_too(stage):
    _, _, reader, server, checker = stage
    record = await server.publish(window(), [])
    assert (await read_content(reader, record, checker)).receipts == ()


async def test_content_that_is_not_signed_for_is_refused(stage):
    _, _, reader, server, checker = stage
    receipts = done(10)
    record = await server.publish(window(), receipts)
    for pages in (
        [encode([signed.envelope for signed in receipts[:9]])],
        [encode([signed.envelope for signed in [*receipts[:9], receipts[0]]])],
        [encode([signed.envelope for signed in [*receipts, *done(11)[10:]]])],
        [encode([b"junk"])],
        [encode([[1], 2])],
        [b"\xc1"],
        [encode([bytes(500)])],
    ):
        server._pages = pages
        with pytest.raises(ProtocolViolation):
            await read_content(reader, record, checker)
    for epoch in (record.epoch + 1, -1):
        server._epoch = epoch
        with pytest.raises(PeerUnreachable, match="another snapshot"):
            await read_content(reader, record, checker)


async def test_a_publisher_that_vouches_for_what_nobody_signed_or_for_other_epochs_is_refused(stage):
    _, _, reader, server, checker = stage
    opened = Envelope.from_bytes(done(1)[0].envelope)
    forged = replace(opened, signatures=(opened.signatures[0], STRANGER.sign(2, opened.body))).to_bytes()
    for bad in (place(done(1)[0].record, forged), sealed(P, C, epochs_ago=5)):
        record = await server.publish(window(), [*done(3), bad])
        with pytest.raises(ProtocolViolation, match="no receipt of its window"):
            await read_content(reader, record, checker)


async def test_a_snapshot_larger_than_any_is_not_asked_for(stage):
    _, _, reader, server, checker = stage
    record = await server.publish(window(), done(1))
    with pytest.raises(ProtocolViolation, match="more than is read"):
        await read_content(reader, replace(record, num_receipts=2**40), checker)


async def test_one_peer_takes_few_streams_and_none_for_ever(stage, monkeypatch):
    publisher, other, reader, server, checker = stage
    receipts = done(3)
    record = await server.publish(window(), receipts)
    held = [await reader.dial(publisher.peer_id, SNAPSHOT_PROTOCOL) for _ in range(MAX_READERS_OF_PEER)]
    await asyncio.sleep(0.2)
    with pytest.raises(PeerUnreachable):
        await read_content(reader, record, checker)
    assert len((await read_content(other, record, checker)).receipts) == 3, "others are served meanwhile"
    for stream in held:
        await stream.close()
    await eventually_read(reader, record, checker)
    monkeypatch.setattr("dht.receipts.snapshots.STREAM_S", 0.2)
    stream = await reader.dial(publisher.peer_id, SNAPSHOT_PROTOCOL)
    async with asyncio.timeout(5):
        assert await stream.reader.read(1) == b""
    await stream.close()
    await eventually_read(reader, record, checker)


async def test_few_ids_do_not_keep_others_from_reading(stage):
    publisher, _, reader, server, checker = stage
    record = await server.publish(window(), done(3))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            idle = await stack.enter_async_context(Swarm(Identity.ephemeral(), join=publisher.join_code))
            for _ in range(MAX_READERS_OF_PEER):
                stack.push_async_callback((await idle.dial(publisher.peer_id, SNAPSHOT_PROTOCOL)).close)
        while server._readers.total() < 8 * MAX_READERS_OF_PEER:
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            assert len((await read_content(reader, record, checker)).receipts) == 3


async def test_more_streams_than_are_served_are_closed_at_once(stage, monkeypatch):
    publisher, other, reader, server, checker = stage
    record = await server.publish(window(), done(3))
    monkeypatch.setattr("dht.receipts.snapshots.MAX_READERS", 1)
    held = await other.dial(publisher.peer_id, SNAPSHOT_PROTOCOL)
    while not server._readers.total():
        await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        with pytest.raises(PeerUnreachable):
            await read_content(reader, record, checker)
    await held.close()
    await eventually_read(reader, record, checker)


async def test_a_large_window_is_summed_up_beside_the_event_loop(stage, monkeypatch):
    _, _, _, server, _ = stage
    threads = []

    def noting(envelopes):
        threads.append(threading.current_thread())
        return digest_of(envelopes)

    monkeypatch.setattr("dht.receipts.snapshots.digest_of", noting)
    await server.publish(window(), done(3))
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def eventually_read(reader, record, checker):
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(PeerUnreachable):
                return await read_content(reader, record, checker)
            await asyncio.sleep(0.1)
