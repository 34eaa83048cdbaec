"""A ledger behind an event loop: batches, errors, and what is not waited for."""

import asyncio
import time

import pytest

from dht.errors import BadRecord, Contradiction, LedgerNotWritten
from dht.receipts.async_ledger import AsyncLedger, OwnReceipts
from dht.receipts.ledger import Ledger
from dht.receipts.reservation_table import UnsignedEnd
from dht.work import WorkKind
from tests.dht.receipts.ledger_kit import CONSUMER, OWN, envelope, made
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST

ME = OWN.peer_id
SLOT = made().slot


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    opened = Ledger.open(tmp_path / "ledger.sqlite")
    opened.batches = []
    append_all = opened.append_all
    monkeypatch.setattr(opened, "append_all", lambda batch: (opened.batches.append(len(batch)), append_all(batch))[1])
    return opened


async def test_appends_of_one_moment_share_a_transaction(ledger, tmp_path):
    async with AsyncLedger(ledger) as front:
        answers = await asyncio.gather(*(front.append(ME, envelope(seq=seq)) for seq in range(1, 41)))
        assert answers == [True] * 40
        assert ledger.batches == [40]
        assert await front.append(ME, envelope(seq=1)) is False
    with Ledger.open(tmp_path / "ledger.sqlite") as again:
        assert again.verify() == (40, [])


async def test_each_caller_gets_its_own_error(ledger):
    async with AsyncLedger(ledger) as front:
        batch = [envelope(), b"junk", envelope(amount=65), envelope(seq=2)]
        outcomes = await asyncio.gather(*(front.append(ME, data) for data in batch), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [bool, BadRecord, Contradiction, bool]


async def test_a_disk_that_takes_nothing_is_told_to_all_and_tried_again(ledger):
    async with AsyncLedger(ledger) as front:
        execute = ledger._store._file.connection.execute
        execute("PRAGMA query_only = ON")
        outcomes = await asyncio.gather(
            *(front.append(ME, envelope(seq=seq)) for seq in (1, 2)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [LedgerNotWritten] * 2
        execute("PRAGMA query_only = OFF")
        assert await front.append(ME, envelope(seq=3))
        assert await front.ask(Ledger.verify) == (3, [])


async def test_a_caller_that_is_cancelled_loses_nothing(ledger, tmp_path):
    async with AsyncLedger(ledger) as front:
        waiting = [asyncio.create_task(front.append(ME, envelope(seq=seq))) for seq in (1, 2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await waiting[1]
        assert waiting[0].cancelled()
    with Ledger.open(tmp_path / "ledger.sqlite") as again:
        assert again.verify() == (2, [])


async def test_a_bug_in_the_ledger_leaves_nobody_waiting(ledger, monkeypatch):
    async with AsyncLedger(ledger) as front:
        monkeypatch.setattr(ledger, "append_all", lambda batch: 1 / 0)
        waiting = [asyncio.create_task(front.append(ME, envelope(seq=seq))) for seq in (1, 2)]
        await asyncio.sleep(0)
        writer = front._writer
        with pytest.raises(ZeroDivisionError):
            await writer
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2


async def test_leaving_writes_what_is_pending(ledger, tmp_path):
    async with AsyncLedger(ledger) as front:
        tasks = [asyncio.create_task(front.append(ME, envelope(seq=seq))) for seq in (1, 2)]
        await asyncio.sleep(0)
    assert [await task for task in tasks] == [True, True]
    with Ledger.open(tmp_path / "ledger.sqlite") as again:
        assert again.verify() == (2, [])


async def test_numbers_do_not_wait_for_a_transaction_that_runs(ledger, monkeypatch):
    async with AsyncLedger(ledger) as front:
        assert ledger.reserve(ME, SLOT) == 1
        append_all = ledger.append_all
        monkeypatch.setattr(ledger, "append_all", lambda batch: (time.sleep(0.3), append_all(batch))[1])
        appending = asyncio.create_task(front.append(ME, envelope()))
        await asyncio.sleep(0.05)
        assert [ledger.reserve_in_memory(ME, SLOT) for _ in range(15)] == list(range(2, 17))
        assert not appending.done()
        assert ledger.reserve_in_memory(ME, SLOT) is None
        assert ledger.reserve(ME, SLOT) == 17
        await appending


async def test_questions_and_notes_go_to_the_ledger(ledger):
    end = UnsignedEnd(CONSUMER.peer_id, False, MANIFEST, 16, EPOCH_BEGAN)
    async with AsyncLedger(ledger) as front:
        await front.append(ME, envelope())
        await front.note_unsigned_end(ME, end)
        assert await front.ask(lambda held: held.history_of(ME, CONSUMER.peer_id)) == {WorkKind.DECODE: 64}
        assert await front.ask(lambda held: held.unsigned(ME)) == [end]


async def test_a_publisher_is_given_the_newest_of_each_slot_since_an_epoch(ledger):
    begins = EPOCH_BEGAN + 21600
    next_epoch = envelope(epoch=EPOCH + 1, t_first=begins, t_last=begins)
    async with AsyncLedger(ledger) as front:
        for data in (envelope(), envelope(seq=2), next_epoch):
            await front.append(ME, data)
        source = OwnReceipts(front, ME)
        assert await source.newest_envelopes(EPOCH) == [envelope(seq=2), next_epoch]
        assert await source.newest_envelopes(EPOCH + 1) == [next_epoch]
        assert await OwnReceipts(front, CONSUMER.peer_id).newest_envelopes(0) == []
