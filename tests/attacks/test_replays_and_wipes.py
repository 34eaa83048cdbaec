"""What was good once is sent again, what stands is overwritten, and good records are written in other bytes."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import msgpack
import pytest
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2

from dht.codec import encode
from dht.identity import Identity
from dht.records import Envelope, Kind, SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import receipts_key
from tests.attacks.scene import LASTING, Evil, Scene, cosigned, evil_with, holds, scene_of, work
from tests.dht.test_attackers import dictionary, send_store

PROVIDER, CONSUMER = Identity.ephemeral(), Identity.ephemeral()
SECONDS = Rules(epoch_s=2, window_epochs=2, evidence_epochs=4)


async def test_an_old_receipt_neither_replaces_nor_shortens_the_new_one():
    """Adversary 8, Replayer: in a swarm of seconds, so that the old receipt's expiry passes while we watch."""
    async with scene_of(SECONDS) as scene:
        old = work(PROVIDER, CONSUMER, SECONDS)
        new = replace(old, seq=4096, amount=128, work=512)
        before, after = (cosigned(each, PROVIDER, CONSUMER, SECONDS) for each in (old, new))
        assert after.expires_s - before.expires_s > 3.9
        assert await scene.honest[0].store(before)
        assert await scene.honest[0].store(after)
        async with scene.fresh_reader() as reader:
            for _ in range(3):
                assert await scene.spread(evil_with(before, "")) == [False, False]
            assert await read(reader, old.epoch) == [new]
            await asyncio.sleep(before.expires_s + 0.2 - time.time())
            assert await scene.spread(evil_with(before, "expired")) == [False, False]
            for node in scene.honest:
                assert holds(node, after.key) == {after.subkey: after.envelope}
            reader._overlay.protocol.storage.clear()
            assert await read(reader, old.epoch) == [new]
            await asyncio.sleep(after.expires_s + 0.2 - time.time())
            assert await scene.spread(evil_with(after, "expired")) == [False, False]
            assert await read(reader, old.epoch) == []


async def read(reader: Swarm, epoch: int, provider: Identity = PROVIDER) -> list:
    return await reader.fetch(Kind.RECEIPT, receipts_key(provider.peer_id, epoch))


@pytest.fixture
async def book() -> AsyncIterator[tuple[Scene, list[SignedRecord]]]:
    """A provider's book of three receipts; at the end it is as it was, at every honest node and for a fresh reader."""
    async with scene_of() as scene:
        consumers = [Identity.ephemeral() for _ in range(3)]
        receipts = [cosigned(work(PROVIDER, each), PROVIDER, each) for each in consumers]
        for signed in receipts:
            assert await scene.honest[0].store(signed)
        yield scene, receipts
        for node in scene.honest:
            assert holds(node, receipts[0].key) == {signed.subkey: signed.envelope for signed in receipts}
        async with scene.fresh_reader() as reader:
            found = await read(reader, receipts[0].record.epoch)
            assert {each.consumer for each in found} == {each.peer_id for each in consumers}


@pytest.mark.parametrize("tag", [msgpack.packb(None), b"", msgpack.packb("text"), b"\xc1"])
async def test_a_plain_value_with_a_later_expiry_wipes_no_book(book, tag: bytes):
    """Adversary 9, Wiper; of announcements: ``tests/dht/test_attackers.py``."""
    scene, (signed, *_) = book
    for node in scene.honest:
        for value in (b"junk", signed.envelope, b""):
            assert not await send_store(scene.adversary, node, signed.key, tag, value, signed.expires_s + 3600.0)


async def test_a_poisoned_dictionary_changes_no_book(book):
    """Adversary 9, Wiper: all subkeys at once, with a later expiry."""
    scene, receipts = book
    later = receipts[0].expires_s + 3600.0
    packed = dictionary(*((signed.subkey, signed.envelope, later) for signed in receipts))
    for node in scene.honest:
        assert not await send_store(scene.adversary, node, receipts[0].key, b"", packed, later)


async def test_a_replica_that_answers_with_a_plain_value_hides_no_book(book):
    """Adversary 9, Wiper: it has wiped its own part, and serves a plain value that outlives all that stands."""
    scene, receipts = book
    asked = []

    async def wiped(request: bytes, remote: PeerID) -> bytes:
        asked.append(remote)
        found = dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=b"junk", expiration_time=1e12)
        return dht_pb2.FindResponse(results=[found]).SerializeToString()

    scene.adversary._control._unary_handlers["DHTProtocol.rpc_find"] = wiped
    async with scene.fresh_reader() as reader:
        assert len(await read(reader, receipts[0].record.epoch)) == 3
    assert asked


async def test_one_receipt_has_one_form_in_bytes():
    """Adversary 10, Malleator: provider and consumer both sign the mangled body, so only its form is against it."""
    async with scene_of() as scene:
        good = cosigned(work(PROVIDER, CONSUMER, lane=0), PROVIDER, CONSUMER)
        assert await scene.honest[0].store(good)
        epoch = good.record.epoch
        tries = [mangled(lane, mangle) for lane, mangle in enumerate((*BODIES, *ENVELOPES), start=1)]
        await scene.assert_refused(Kind.RECEIPT, receipts_key(PROVIDER.peer_id, epoch), tries, [good.record])


def two_bytes(body: bytes) -> bytes:
    """Write the first block, 0, in two bytes where one is enough."""
    values = msgpack.unpackb(body)
    packed = b"".join(b"\xcc\x00" if at == 7 else msgpack.packb(value) for at, value in enumerate(values))
    return body[:3] + packed


def as_map(body: bytes) -> bytes:
    return msgpack.packb(dict(enumerate(msgpack.unpackb(body))))


def as_float(body: bytes) -> bytes:
    values = msgpack.unpackb(body)
    return msgpack.packb([*values[:11], float(values[11]), *values[12:]])


def as_text(body: bytes) -> bytes:
    values = msgpack.unpackb(body)
    return msgpack.packb([*values[:-1], str(values[-1])])


BODIES = (lambda body: body + b"\0", two_bytes, as_map, as_float, as_text, lambda body: encode([body]))


def version_in_two_bytes(envelope: bytes) -> bytes:
    return b"\x94\xcc\x01" + envelope[2:]


def signatures_as_map(envelope: bytes) -> bytes:
    version, kind, body, signatures = msgpack.unpackb(envelope)
    return msgpack.packb([version, kind, body, dict(enumerate(signatures))])


def as_tuple_of_three(envelope: bytes) -> bytes:
    return msgpack.packb(msgpack.unpackb(envelope)[:3])


ENVELOPES = (lambda envelope: envelope + b"\0", version_in_two_bytes, signatures_as_map, as_tuple_of_three)


def mangled(lane: int, mangle) -> Evil:
    made = work(PROVIDER, CONSUMER, lane=lane)
    signed = cosigned(made, PROVIDER, CONSUMER, LASTING)
    if mangle in ENVELOPES:
        return evil_with(signed, "malformed", envelope=mangle(signed.envelope))
    body = mangle(made.to_body())
    assert body != made.to_body()
    return evil_with(
        signed, "malformed", envelope=Envelope(2, body, (PROVIDER.sign(2, body), CONSUMER.sign(2, body))).to_bytes()
    )
