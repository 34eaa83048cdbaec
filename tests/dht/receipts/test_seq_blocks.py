"""Which numbers are handed out: the drawing of the module, and its bounds."""

from dht.receipts import seq_blocks
from dht.receipts.seq_blocks import BLOCK, SeqBlocks, block_from, floor_after
from dht.work import MAX_SEQ
from tests.dht.receipts.ledger_kit import OWN, made

SLOT = (OWN.peer_id, made().slot)


def test_a_block_is_handed_out_to_its_end_and_then_another_is_asked_for():
    blocks = SeqBlocks()
    assert blocks.take(SLOT, 1) is None
    blocks.add(SLOT, 1, 16)
    assert [blocks.take(SLOT, 1) for _ in range(17)] == [*range(1, 17), None]
    assert blocks.least(SLOT, 1) == 17


def test_numbers_that_were_asked_for_later_leave_those_before_unused():
    blocks = SeqBlocks()
    blocks.add(SLOT, 1, 16)
    assert [blocks.take(SLOT, n) for n in (3, 4, 1, 16, 1)] == [3, 4, 5, 16, None]


def test_a_crash_leaves_the_rest_of_a_block_unused_as_drawn():
    assert block_from(1, 0) == (1, 16)
    assert block_from(4, 16) == (17, 32)
    assert block_from(48, 32) == (48, 63)
    assert block_from(1, MAX_SEQ - 1) == (MAX_SEQ, MAX_SEQ)
    assert block_from(1, MAX_SEQ) is None
    assert BLOCK == 16


def test_what_is_forgotten_costs_a_block(monkeypatch):
    monkeypatch.setattr(seq_blocks, "MAX_SLOTS", 2)
    blocks = SeqBlocks()
    slots = [(OWN.peer_id, made(lane=lane).slot) for lane in range(3)]
    for slot in slots:
        blocks.add(slot, 1, 16)
    assert [blocks.take(slot, 1) for slot in slots] == [None, 1, 1]


def test_the_floor_rises_with_every_file_that_is_lost_and_never_passes_the_end():
    floors = [floor_after(0, num) for num in range(25)]
    assert floors[:4] == [0, MAX_SEQ // 2, MAX_SEQ * 3 // 4, MAX_SEQ * 7 // 8]
    assert floors == sorted(floors)
    assert floors[-1] == MAX_SEQ
    assert floor_after(floor_after(0, 2), 3) == floor_after(0, 5)
