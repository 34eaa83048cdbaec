"""Say which sequence numbers a peer may sign next, so that no crash makes it sign two receipts with one number.

    block in the file     1 ................ 16 | 17 ................ 32 | 48 ...
    handed out            1 2 3 (crash)           17 18 ...
                               4 to 16 are never used: a number only has to rise

Numbers are written ahead in blocks of 16, one forced write per block. This half keeps the blocks of this process in
memory and asks for another one when a block is used up; ``ledger`` writes them. Pure but for its own state; one lock
makes it safe in any thread.
"""

import threading
from collections import OrderedDict

from dht.work import MAX_SEQ, Slot

BLOCK = 16
"""Numbers that one forced write reserves."""

LOW = 4
"""So few numbers left are a reason to write the next block."""

MAX_SLOTS = 16384
"""Slots whose blocks are remembered; of one that is forgotten, the rest of the block is not used."""

SlotOf = tuple[str, Slot]
"""Own peer id, and the slot that it signs in."""


class SeqBlocks:
    """Blocks that this process has reserved, by own peer id and slot."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[SlotOf, tuple[int, int]] = OrderedDict()  # next to hand out, last of the block
        self._lock = threading.Lock()

    def take(self, slot: SlotOf, seq: int) -> int | None:
        """Hand out the least number from ``seq`` on that was never handed out; None: no block holds one."""
        with self._lock:
            following, last = self._blocks.get(slot, (1, 0))
            taken = max(seq, following)
            if taken > last:
                return None
            self._blocks[slot] = (taken + 1, last)
            self._blocks.move_to_end(slot)
            return taken

    def least(self, slot: SlotOf, seq: int) -> int:
        """Return the least number from ``seq`` on that this process has not handed out."""
        with self._lock:
            return max(seq, self._blocks.get(slot, (1, 0))[0])

    def is_low(self, slot: SlotOf) -> bool:
        """Say whether a slot has few numbers left in memory, or none."""
        following, last = self._blocks.get(slot, (1, 0))
        return last - following < LOW

    def add(self, slot: SlotOf, first: int, last: int) -> None:
        """Take note of a block that has been written; one that follows the last one is joined to what is left of it."""
        with self._lock:
            following, up_to = self._blocks.get(slot, (1, 0))
            self._blocks[slot] = (following if following <= up_to == first - 1 else first, last)
            self._blocks.move_to_end(slot)
            if len(self._blocks) > MAX_SLOTS:
                self._blocks.popitem(last=False)


def block_from(seq: int, reserved: int) -> tuple[int, int] | None:
    """Choose the next block: first and last number, or None where an epoch has no numbers left.

    Args:
        seq: The least number that is wanted.
        reserved: The highest one that this process or an earlier one may have signed.
    """
    first = max(seq, reserved + 1)
    return (first, min(first + BLOCK - 1, MAX_SEQ)) if first <= MAX_SEQ else None


def floor_after(floor: int, num_lost: int) -> int:
    """Choose the number that no new one may be at or below, where files were lost and nobody knows what they held.

    Each time half of what is left: nobody comes near to half a million receipts of one lane in one epoch.

    Args:
        floor: What it was before.
        num_lost: How many files were lost.
    """
    return MAX_SEQ - ((MAX_SEQ - floor) >> num_lost)
