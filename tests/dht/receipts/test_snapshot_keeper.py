"""Who sums up the receipts of a swarm: when, how much, and from what."""

import asyncio
import time

import pytest

from dht.ident import Ident, Role
from dht.identity import Identity
from dht.receipts import snapshot_keeper
from dht.receipts.checking import SignatureChecker
from dht.receipts.snapshot_keeper import SnapshotKeeper, newest_ended, window_up_to
from dht.receipts.snapshots import newest_record, read_content
from dht.records import seal
from dht.rules import DEFAULT_RULES, Rules
from dht.testnet import testnet
from tests.dht.receipts.made import sealed

P, D, C = (Identity.ephemeral() for _ in range(3))
EPOCH = DEFAULT_RULES.epoch_of(time.time())
NOON_S = DEFAULT_RULES.start_of(EPOCH) + 10_000


def enrolled(peer: Identity):
    return seal(Ident(peer.peer_id, EPOCH, EPOCH, 0, Role.SERVER, ""), peer)


def test_an_epoch_is_summed_up_when_its_last_receipts_have_had_time_to_come():
    rules = DEFAULT_RULES
    assert newest_ended(rules, rules.start_of(8)) == 6
    assert newest_ended(rules, rules.start_of(8) + 1199) == 6
    assert newest_ended(rules, rules.start_of(8) + 1200) == 7
    assert newest_ended(rules, 0.0) == -1
    assert window_up_to(rules, 100) == range(45, 101)
    assert window_up_to(Rules(window_epochs=4), 1) == range(2)


@pytest.fixture
async def swarm():
    async with testnet(3) as nodes, SignatureChecker() as checker:
        await nodes[1].store(enrolled(P))
        yield *nodes, checker


async def content_of(reader, publisher, checker):
    record = await newest_record(reader, publisher.peer_id, EPOCH)
    return {signed.envelope for signed in (await read_content(reader, record, checker)).receipts}


async def test_all_receipts_of_ended_epochs_are_in_the_snapshot_once_for_each_epoch(swarm):
    publisher, other, reader, checker = swarm
    ended = [sealed(P, C, epochs_ago=ago) for ago in (1, 2, 9)]
    for signed in (*ended, sealed(P, C)):
        await other.store(signed)
    keeper = SnapshotKeeper(publisher, publisher._identity, clock=lambda: NOON_S)
    await keeper._server.start()
    assert await keeper.sum_up(DEFAULT_RULES)
    assert await content_of(reader, publisher, checker) == {signed.envelope for signed in ended}
    assert not await keeper.sum_up(DEFAULT_RULES), "this epoch has been summed up"


async def test_the_next_snapshot_has_what_came_late_and_whoever_came_later(swarm):
    publisher, other, reader, checker = swarm
    now_s = [NOON_S - DEFAULT_RULES.epoch_s]
    early = [sealed(P, C, epochs_ago=2), sealed(P, C, epochs_ago=9)]
    for signed in early:
        await other.store(signed)
    keeper = SnapshotKeeper(publisher, publisher._identity, clock=lambda: now_s[0])
    await keeper._server.start()
    assert await keeper.sum_up(DEFAULT_RULES)
    late = [sealed(P, C, epochs_ago=2, lane=8), sealed(P, C, epochs_ago=1), sealed(D, C, epochs_ago=9)]
    for signed in (*late, enrolled(D)):
        await other.store(signed)
    now_s[0] = NOON_S
    assert await keeper.sum_up(DEFAULT_RULES)
    assert await content_of(reader, publisher, checker) == {signed.envelope for signed in (*early, *late)}


async def test_an_error_that_nobody_foresaw_is_not_the_last_try(swarm, monkeypatch):
    publisher, other, reader, checker = swarm
    await other.store(sealed(P, C, epochs_ago=1))
    monkeypatch.setattr(snapshot_keeper, "period_s", lambda rules: 0.2)
    keeper = SnapshotKeeper(publisher, publisher._identity, clock=lambda: NOON_S)
    honest, failures = keeper._collect, [ZeroDivisionError("a defect")]

    async def failing_once(window):
        if failures:
            raise failures.pop()
        return await honest(window)

    keeper._collect = failing_once
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(20):
        while await newest_record(reader, publisher.peer_id, EPOCH) is None:
            await asyncio.sleep(0.1)
    assert not failures
    assert len(await content_of(reader, publisher, checker)) == 1, "and it is served"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_where_there_is_no_room_the_oldest_epochs_are_left_out(swarm, monkeypatch):
    publisher, other, reader, checker = swarm
    receipts = [sealed(P, C, epochs_ago=ago, lane=lane) for ago in (1, 2) for lane in range(3)]
    for signed in receipts:
        await other.store(signed)
    monkeypatch.setattr(snapshot_keeper, "MAX_KEPT", 4)
    keeper = SnapshotKeeper(publisher, publisher._identity, clock=lambda: NOON_S)
    await keeper._server.start()
    await keeper.sum_up(DEFAULT_RULES)
    record = await newest_record(reader, publisher.peer_id, EPOCH)
    assert (record.first_epoch, record.epoch) == (EPOCH - 1, EPOCH - 1)
    assert await content_of(reader, publisher, checker) == {signed.envelope for signed in receipts[:3]}
    monkeypatch.setattr(snapshot_keeper, "MAX_KEPT", 2)
    crowded = SnapshotKeeper(other, other._identity, clock=lambda: NOON_S)
    await crowded.sum_up(DEFAULT_RULES)
    assert await newest_record(reader, other.peer_id, EPOCH) is None


async def test_after_a_restart_nothing_is_served_that_the_standing_record_does_not_name(swarm):
    publisher, other, _, _ = swarm
    await other.store(sealed(P, C, epochs_ago=1))
    first, again, third = (SnapshotKeeper(publisher, publisher._identity, clock=lambda: NOON_S) for _ in range(3))
    await first.sum_up(DEFAULT_RULES)
    await again.sum_up(DEFAULT_RULES)
    assert again._server._pages == first._server._pages != []
    await other.store(sealed(P, C, epochs_ago=1, lane=9))
    await third.sum_up(DEFAULT_RULES)
    assert third._server._pages == []
