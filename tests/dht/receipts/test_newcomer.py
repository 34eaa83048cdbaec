"""What a newcomer reads of a window: sound snapshots and the rest of the DHT; false snapshots are found and named."""

import asyncio
import random
import time

import pytest

from dht.codec import encode
from dht.ident import Ident, Role
from dht.identity import Identity
from dht.receipts import newcomer
from dht.receipts.checking import SignatureChecker
from dht.receipts.newcomer import begin, complete
from dht.receipts.snapshots import SnapshotServer
from dht.records import seal
from dht.rules import DEFAULT_RULES
from dht.snapshot import NO_SCORES, Snapshot, digest_of
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.receipts.made import sealed

PROVIDERS = [Identity.ephemeral() for _ in range(4)]
C = Identity.ephemeral()
EPOCH = DEFAULT_RULES.epoch_of(time.time())
WINDOW = range(EPOCH - 4, EPOCH + 1)
SUMMED = range(EPOCH - 4, EPOCH)


@pytest.fixture
async def town():
    """A publisher, a reader, a checker, and receipts of four providers in five epochs on the DHT."""
    receipts = [sealed(provider, C, epochs_ago=ago) for provider in PROVIDERS for ago in range(5)]
    async with testnet(3) as (publisher, other, reader), SignatureChecker() as checker:
        for signed in receipts:
            assert await other.store(signed)
        for provider in PROVIDERS:
            await other.store(seal(Ident(provider.peer_id, EPOCH, EPOCH, 0, Role.SERVER, ""), provider))
        server = SnapshotServer(publisher, publisher._identity)
        await server.start()
        yield server, publisher, reader, checker, receipts


async def read(reader, publisher, checker):
    beginning = await begin(reader, [publisher.peer_id], WINDOW, checker, random.Random(3))
    return beginning, {signed.envelope async for signed in complete(reader, beginning, checker)}


def ended(receipts):
    return [signed for signed in receipts if signed.record.epoch < EPOCH]


async def test_a_sound_snapshot_spares_the_reading_of_all_but_the_newest_epochs(town):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, ended(receipts))
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    assert beginning.rest == (EPOCH - 1, EPOCH)
    assert beginning.providers == tuple(sorted(provider.peer_id for provider in PROVIDERS))
    (verdict,) = beginning.verdicts
    assert (verdict.is_used, verdict.is_false, verdict.check.both.num_missing) == (True, False, 0)


async def test_a_receipt_that_came_after_the_snapshot_makes_no_liar_of_its_publisher(town):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, [signed for signed in ended(receipts) if signed.record.epoch < EPOCH - 1])
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    assert beginning.verdicts[0].is_used


async def test_a_snapshot_that_leaves_a_provider_out_is_named_and_everything_is_read_from_the_dht(town):
    server, publisher, reader, checker, receipts = town
    victim = PROVIDERS[2].peer_id
    await server.publish(SUMMED, [signed for signed in ended(receipts) if signed.record.provider != victim])
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    assert beginning.rest == tuple(WINDOW)
    (verdict,) = beginning.verdicts
    assert (verdict.record.publisher, verdict.is_false, verdict.is_used) == (publisher.peer_id, True, False)
    assert verdict.check.both.num_missing > 0


async def test_a_publisher_that_sends_something_else_than_it_signed_is_named(town):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, ended(receipts))
    server._pages = [encode([signed.envelope for signed in ended(receipts)[1:]])]
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    (verdict,) = beginning.verdicts
    assert verdict.is_false
    assert "not those that its publisher has signed for" in verdict.trouble


async def test_a_publisher_that_is_gone_is_no_liar_and_costs_nothing_but_its_snapshot(town):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, ended(receipts))
    server._epoch = -1
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    (verdict,) = beginning.verdicts
    assert (verdict.is_false, verdict.is_used) == (False, False)
    assert "another snapshot" in verdict.trouble


async def test_a_publisher_that_sends_too_slowly_costs_a_bounded_time(town, monkeypatch):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, ended(receipts))

    async def silent(stream):
        await asyncio.sleep(60)

    server._send_pages = silent
    monkeypatch.setattr(newcomer, "READ_S", 0.3)
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    (verdict,) = beginning.verdicts
    assert (verdict.is_false, verdict.trouble) == (False, "it did not come in time")


async def test_who_says_that_it_is_a_bootstrap_is_asked_too_but_only_a_few_are(town):
    server, publisher, reader, checker, receipts = town
    await server.publish(SUMMED, ended(receipts))
    ident = Ident(publisher.peer_id, EPOCH, EPOCH, 0, Role.BOOTSTRAP, "")
    await publisher.store(seal(ident, publisher._identity))
    nobody = [Identity.ephemeral().peer_id for _ in range(4)]
    found = await begin(reader, nobody[:3], WINDOW, checker, random.Random(3))
    assert [verdict.is_used for verdict in found.verdicts] == [True]
    assert (await begin(reader, nobody, WINDOW, checker, random.Random(3))).verdicts == ()


async def test_a_snapshot_of_one_epoch_or_of_others_is_not_read(town):
    server, publisher, reader, checker, _ = town
    await server.publish(range(EPOCH - 1, EPOCH), [])
    assert (await begin(reader, [publisher.peer_id], WINDOW, checker, random.Random(3))).verdicts == ()
    await server.publish(range(EPOCH - 9, EPOCH - 6), [])
    assert (await begin(reader, [publisher.peer_id], WINDOW, checker, random.Random(3))).verdicts == ()


async def test_a_window_that_begins_long_ago_does_not_hide_the_one_that_is_read(town):
    server, publisher, reader, checker, receipts = town
    for first in (0, EPOCH - 50):
        record = Snapshot(publisher.peer_id, first, EPOCH - 1, 0, digest_of([]), NO_SCORES)
        stored = await publisher.store(seal(record, publisher._identity))
        assert stored is (first > 0), "no snapshot is of more epochs than stand on the DHT"
    server._epoch = EPOCH - 1
    server._pages = []
    for seed in range(5):
        beginning = await begin(reader, [publisher.peer_id], WINDOW, checker, random.Random(seed))
        assert not any(verdict.is_used for verdict in beginning.verdicts)
        found = {signed.envelope async for signed in complete(reader, beginning, checker)}
        assert found == {signed.envelope for signed in receipts}
        assert set(beginning.rest) == set(WINDOW)


async def test_made_up_identities_do_not_hide_the_window_that_is_read(town):
    server, publisher, reader, checker, _ = town
    await server.publish(SUMMED, [])
    made_up = [Identity.ephemeral() for _ in range(300)]
    await publisher.store_many([seal(Ident(each.peer_id, EPOCH, EPOCH, 0, Role.SERVER, ""), each) for each in made_up])
    for seed in range(2):
        beginning = await begin(reader, [publisher.peer_id], WINDOW, checker, random.Random(seed))
        assert not any(verdict.is_used for verdict in beginning.verdicts)
        assert beginning.rest == tuple(WINDOW)


async def test_epochs_before_the_window_are_neither_compared_nor_kept(town):
    server, publisher, reader, checker, receipts = town
    old = [sealed(PROVIDERS[0], C, epochs_ago=ago) for ago in range(5, 40)]
    await server.publish(range(EPOCH - 40, EPOCH), [*old, *ended(receipts)])
    beginning, found = await read(reader, publisher, checker)
    assert found == {signed.envelope for signed in receipts}
    assert beginning.verdicts[0].is_used
    assert beginning.verdicts[0].record.first_epoch == EPOCH - 40
    assert beginning.rest == (EPOCH - 1, EPOCH)


async def test_what_one_publisher_has_finds_out_another_that_leaves_it_out(town, monkeypatch):
    server, publisher, reader, checker, receipts = town
    monkeypatch.setattr(newcomer, "read_identities", _nobody)
    await server.publish(SUMMED, ended(receipts))
    async with Swarm(Identity.ephemeral(), join=publisher.join_code) as liar:
        lying = SnapshotServer(liar, liar._identity)
        await lying.start()
        await lying.publish(SUMMED, [])
        publishers = [liar.peer_id, publisher.peer_id]
        begun = await begin(reader, publishers, WINDOW, checker, random.Random(3))
        found = {signed.envelope async for signed in complete(reader, begun, checker)}
    assert [verdict.is_false for verdict in begun.verdicts] == [True, False]
    assert found == {signed.envelope for signed in receipts}, "providers are known from what was not proven false"


async def _nobody(swarm):
    return []
