"""A desk waits for the disk only for what it was not told to expect, and loses nothing it was given."""

import logging

import pytest

from dht.errors import LedgerNotWritten
from dht.identity import Identity
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.receipts.seq_blocks import BLOCK
from dht.records import seal
from dht.work import Slot, WorkKind
from node.receipt_desk import ReceiptDesk
from tests.dht.samples import receipt

OWN, OTHER = Identity.ephemeral(), Identity.ephemeral()
SLOT = Slot(OWN.peer_id, OTHER.peer_id, 80_000, 7, WorkKind.DECODE)


@pytest.fixture
async def ledger(tmp_path):
    async with AsyncLedger(Ledger.open(tmp_path / "ledger.sqlite")) as ledger:
        yield ledger


@pytest.fixture
def desk(ledger):
    return ReceiptDesk(OWN, ledger)


def is_out_of_order(*_):
    raise LedgerNotWritten("The disk is full.")


async def test_who_signs_for_what_was_expected_does_not_wait_for_the_disk(desk, ledger, monkeypatch):
    desk.expect(SLOT)
    await desk.drained()
    monkeypatch.setattr(ledger.ledger, "reserve", is_out_of_order)
    taken = []
    for _ in range(5 * BLOCK):
        taken.append(desk.reserve(SLOT, 1))
        await desk.drained()
    assert taken == list(range(1, 5 * BLOCK + 1))


async def test_what_was_not_expected_is_waited_for(desk):
    assert [desk.reserve(SLOT, 1) for _ in range(3)] == [1, 2, 3]
    assert desk.reserve(SLOT, 50) == 50


async def test_numbers_written_ahead_are_not_used_after_a_restart(tmp_path):
    path = tmp_path / "ledger.sqlite"
    async with AsyncLedger(Ledger.open(path)) as first:
        desk = ReceiptDesk(OWN, first)
        desk.expect(SLOT)
        await desk.drained()
        assert desk.reserve(SLOT, 1) == 1
    async with AsyncLedger(Ledger.open(path)) as second:
        assert ReceiptDesk(OWN, second).reserve(SLOT, 1) == BLOCK + 1


async def test_a_disk_that_takes_nothing_is_told_to_who_signs_not_to_who_expects(desk, ledger, monkeypatch):
    monkeypatch.setattr(ledger.ledger, "reserve_ahead", is_out_of_order)
    monkeypatch.setattr(ledger.ledger, "reserve", is_out_of_order)
    desk.expect(SLOT)
    await desk.drained()
    with pytest.raises(LedgerNotWritten):
        desk.reserve(SLOT, 1)


async def test_receipts_are_kept_and_what_is_none_is_logged(desk, ledger, caplog):
    signed = seal(receipt(OWN, OTHER), OWN, OTHER)
    with caplog.at_level(logging.WARNING):
        desk.keep([signed.envelope, b"no receipt"])
        await desk.drained()
    assert "not kept" in caplog.text
    assert await desk.ask(lambda held: [kept.envelope for kept in held.newest(OWN.peer_id)]) == [signed.envelope]
