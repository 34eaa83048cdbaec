"""What a reader gets of receipts: all there are, each once, none that is not signed."""

import asyncio
import time
from dataclasses import replace

from dht.ident import Ident, Role
from dht.identity import Identity
from dht.receipts.checking import SignatureChecker
from dht.receipts.reader import check_envelopes, collect_receipts, known_providers, read_identities
from dht.records import MAX_LIFE_S, Envelope, Kind, ManifestRecord, place, seal
from dht.rules import DEFAULT_RULES
from dht.testnet import testnet
from tests.dht.receipts.made import put, sealed
from tests.dht.samples import MANIFEST, announcement

P, C, D, STRANGER = (Identity.ephemeral() for _ in range(4))


def forged(signed):
    opened = Envelope.from_bytes(signed.envelope)
    wrong = replace(opened, signatures=(opened.signatures[0], STRANGER.sign(opened.kind, opened.body)))
    return place(signed.record, wrong.to_bytes())


async def test_the_newest_of_every_slot_of_the_window_is_read_and_nothing_forged():
    async with testnet(4) as (one, two, three, reader):
        epoch = DEFAULT_RULES.epoch_of(time.time())
        stale, newest = sealed(P, C), sealed(P, C, seq=2, amount=128, work=512)
        others = [sealed(P, D), sealed(D, P), sealed(P, C, epochs_ago=1)]
        outside = sealed(P, C, epochs_ago=9)
        put(one, stale)
        put(two, newest)
        put(three, forged(sealed(P, C, lane=99)))
        put(two, others[0])
        for signed in [*others[1:], outside]:
            assert await one.store(signed)
        found = [
            signed async for signed in collect_receipts(reader, [P.peer_id, D.peer_id], range(epoch - 1, epoch + 1))
        ]
        assert {signed.envelope for signed in found} == {signed.envelope for signed in [newest, *others]}
        assert len(found) == 4


async def test_many_receipts_under_one_key_are_checked_in_workers_and_forgeries_are_left_out():
    async with testnet(2) as (holder, reader), SignatureChecker(many=1) as checker:
        good = [sealed(P, C, lane=lane) for lane in range(150)]
        for signed in good:
            put(holder, signed)
        for lane in range(1000, 1050):
            put(holder, forged(sealed(P, C, lane=lane)))
        window = range(good[0].record.epoch, good[0].record.epoch + 1)
        found = [signed async for signed in collect_receipts(reader, [P.peer_id], window, checker=checker)]
        assert {signed.envelope for signed in found} == {signed.envelope for signed in good}
        assert checker.has_workers
        assert reader.validator.refusals["signature"] == 50


async def test_many_receipts_under_one_key_leave_the_event_loop_its_turns():
    many = [sealed(P, C, lane=lane).envelope for lane in range(400)]
    async with testnet(1) as (node,):
        reading = asyncio.create_task(node._of_kind(Kind.RECEIPT, many))
        num_turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            num_turns += 1
        assert len(reading.result()) == 400
        assert num_turns >= 400 // 64


async def test_of_envelopes_from_anywhere_those_that_are_valid_receipts_come_in_order():
    good = [sealed(P, C, lane=lane) for lane in range(300)]
    junk = [forged(good[0]).envelope, b"junk", b"", seal(announcement(P), P).envelope]
    too_old = sealed(P, C, epochs_ago=DEFAULT_RULES.window_epochs + 2).envelope
    mixed = [each for signed in good for each in (signed.envelope, junk[len(signed.envelope) % 4])] + [too_old]
    async with SignatureChecker() as checker:
        found = [each async for each in check_envelopes(mixed, DEFAULT_RULES, time.time(), checker)]
        assert [each.envelope for each in found] == [signed.envelope for signed in good]
        late = time.time() + 365 * 86400
        assert [each async for each in check_envelopes(mixed, DEFAULT_RULES, late, checker)] == []


async def test_providers_are_known_by_their_identities_and_by_what_they_announce():
    epoch = DEFAULT_RULES.epoch_of(time.time())
    async with testnet(2) as (node, reader):
        ident = Ident(P.peer_id, epoch, epoch, 0, Role.SERVER, "")
        model = ManifestRecord(MANIFEST, D.peer_id, int(time.time()), MAX_LIFE_S, "m", "llama", 4, 8, 16)
        for signed in (seal(ident, P), seal(model, D), seal(announcement(D), D)):
            assert await node.store(signed)
        assert await read_identities(reader) == [ident]
        assert await known_providers(reader) == {P.peer_id, D.peer_id}
