"""When receipts are published, and that only what is new travels."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.identity import Identity
from dht.receipts.publisher import PARTS_OF_EPOCH, ReceiptPublisher, Rest, next_publication, period_s
from dht.records import Kind
from dht.rules import DEFAULT_RULES, Rules
from dht.testnet import testnet
from dht.work import receipts_key
from tests.dht.receipts.made import Memory, sealed

P, C, D = (Identity.ephemeral() for _ in range(3))


@given(st.integers(1, 10**6), st.floats(0, 2e9), st.floats(0, 1))
def test_the_next_publication_is_within_a_period_and_soon_after_an_epoch_ends(epoch_s, now_s, delay):
    rules = Rules(epoch_s=epoch_s)
    due_s = next_publication(rules, now_s, delay)
    assert now_s < due_s <= now_s + period_s(rules)
    if rules.epoch_of(due_s) > rules.epoch_of(now_s) and epoch_s >= PARTS_OF_EPOCH:
        assert due_s <= rules.start_of(rules.epoch_of(now_s) + 1) + max(period_s(rules) / 10, 1e-6 * now_s)


def test_an_epoch_of_six_hours_publishes_every_ten_minutes_and_a_short_one_every_second():
    assert period_s(DEFAULT_RULES) == 600
    assert period_s(Rules(epoch_s=2)) == 1


async def newest(node, provider=P) -> dict[tuple[str, int], int]:
    epoch = DEFAULT_RULES.epoch_of(time.time())
    found = await node.fetch(Kind.RECEIPT, receipts_key(provider.peer_id, epoch))
    return {(record.consumer, record.lane): record.seq for record in found}


async def test_only_what_is_newer_than_last_time_is_published_again():
    async with testnet(4) as (node, *_, reader):
        source = Memory(sealed(P, C), sealed(P, D), sealed(D, P))
        publisher = ReceiptPublisher(node, source)
        assert await publisher.publish() == 3
        assert await publisher.publish() == 0
        source.signed[0] = sealed(P, C, seq=4, amount=256, work=1024)
        assert await publisher.publish() == 1
        assert await newest(reader) == {(C.peer_id, 7): 4, (D.peer_id, 7): 1}


async def test_what_no_member_took_is_tried_again():
    async with testnet(4) as (node, *others):
        source = Memory(sealed(P, C))
        publisher = ReceiptPublisher(node, source)
        for other in others:
            other._control._unary_handlers["DHTProtocol.rpc_store"] = _refuse
        assert await publisher.publish() == 1  # our own storage alone
        assert await publisher.publish() == 1


async def _refuse(request: bytes, remote: object) -> bytes:
    raise RuntimeError("full")


async def test_a_node_publishes_by_itself_and_once_more_when_it_ends(monkeypatch):
    monkeypatch.setattr("dht.receipts.publisher.period_s", lambda rules: 0.3)
    async with testnet(2) as (node, reader):
        source = Memory(sealed(P, C))
        async with ReceiptPublisher(node, source):
            async with asyncio.timeout(10):
                while await newest(reader) != {(C.peer_id, 7): 1}:
                    await asyncio.sleep(0.05)
            monkeypatch.setattr("dht.receipts.publisher.period_s", lambda rules: 300.0)
            await asyncio.sleep(0.4)
            source.signed = [sealed(P, C, seq=9, amount=256, work=1024)]
        assert await newest(reader) == {(C.peer_id, 7): 9}


async def until_published(reader) -> None:
    async with asyncio.timeout(10):
        while await newest(reader) != {(C.peer_id, 7): 1}:
            await asyncio.sleep(0.05)


async def test_a_clock_that_is_set_back_holds_no_publication_up(monkeypatch):
    monkeypatch.setattr("dht.receipts.publisher.period_s", lambda rules: 0.3)
    began_s = time.time()
    async with testnet(2) as (node, reader):
        clock = iter([began_s])
        async with ReceiptPublisher(node, Memory(sealed(P, C)), clock=lambda: next(clock, began_s - 7200)):
            await until_published(reader)


async def test_an_error_that_nobody_foresaw_is_told_and_is_not_the_last_publication(monkeypatch, caplog):
    monkeypatch.setattr("dht.receipts.publisher.period_s", lambda rules: 0.3)
    async with testnet(2) as (node, reader):
        source = Memory(sealed(P, C))
        honest, failures = source.newest_envelopes, [ZeroDivisionError("a defect")]

        async def failing_once(since_epoch: int):
            if failures:
                raise failures.pop()
            return await honest(since_epoch)

        source.newest_envelopes = failing_once
        async with ReceiptPublisher(node, source):
            await until_published(reader)
    assert any("defect of this program" in line.message and line.exc_info for line in caplog.records)


async def test_many_receipts_leave_the_event_loop_its_turns():
    many = [sealed(P, C, lane=lane).envelope for lane in range(400)]
    async with testnet(1) as (node,):
        publisher = ReceiptPublisher(node, Memory())
        reading = asyncio.create_task(publisher._fresh(many, DEFAULT_RULES))
        num_turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            num_turns += 1
        assert len(reading.result()) == 400
        assert num_turns >= 400 // 64


@pytest.mark.parametrize("junk", [b"", b"junk"])
async def test_a_damaged_receipt_of_our_own_holds_nothing_up(junk):
    async with testnet(2) as (node, reader):
        source = Memory(sealed(P, C))
        honest = source.newest_envelopes

        async def damaged(since_epoch: int):
            return [junk, *await honest(since_epoch)]

        source.newest_envelopes = damaged
        assert await ReceiptPublisher(node, source).publish() == 1
        assert len(await newest(reader)) == 1


def test_receipts_are_published_when_work_has_come_to_rest_and_not_too_often():
    rules, begun = DEFAULT_RULES, Rest(0, 0.0, 0, 1000.0)
    assert not begun.is_due(rules, 2000.0), "nothing is new"
    working = begun.seen(4, 1010.0)
    assert not working.is_due(rules, 1012.9), "more may come in a moment"
    assert working.seen(4, 1012.0) == working
    assert not working.is_due(rules, 1029.9), "the last publication was half a minute ago at least"
    assert working.is_due(rules, 1030.0)
    assert not working.seen(5, 1029.0).is_due(rules, 1031.9)
    assert Rest(1, 50.0, 0, 0.0).is_due(Rules(epoch_s=2), 51.0), "short epochs wait less"


async def test_a_receipt_is_on_the_dht_a_few_seconds_after_the_last_one():
    async with testnet(2) as (node, reader):
        source = Memory()
        async with ReceiptPublisher(node, source), asyncio.timeout(10):
            source.signed.append(sealed(P, C))
            source.num_changes += 1
            while await newest(reader) != {(C.peer_id, 7): 1}:
                await asyncio.sleep(0.05)
