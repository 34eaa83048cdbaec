"""Let go of what a ledger need no longer hold, so that its file does not grow with every checkpoint.

A receipt holds all that the earlier ones of its slot hold. Of epochs whose window has ended, where no receipt stands on
the DHT any more, only the newest of each slot is kept, and of reserved numbers the highest of each epoch: a number that
was reserved there is never given again, in whatever lane.

    epochs   | past the window                | in the window         | now |
    kept     | newest receipt of each slot,   | everything                  |
             | one number for each epoch      |                             |

The newest of a slot is verified before older ones go. Every step is one transaction of few slots: a kill in between
loses nothing, and others write meanwhile. Every call may block; any thread may call.
"""

import sqlite3
from collections.abc import Callable

from dht.receipts import receipt_table, reservation_table
from dht.receipts.ledger_store import LedgerStore
from dht.receipts.sound_rows import SoundRows
from dht.rules import Rules
from dht.work import Slot

SLOTS_AT_ONCE = 64
"""Slots of which one transaction drops older receipts."""

FREED_PAGES = 4096
"""Pages that are given back to the disk at once."""


def first_kept_epoch(newest_epoch: int, now_s: float, rules: Rules) -> int:
    """Say which is the first epoch of which everything is kept.

    A clock that is far ahead for a while must not make an epoch look old, so the newest receipts count as well: who
    signs them has a clock like ours.

    Args:
        newest_epoch: Of all receipts that are held.
        now_s: Unix seconds.
        rules: Of the swarm.
    """
    return max(0, min(newest_epoch, rules.epoch_of(now_s)) - rules.window_epochs)


def compact(store: LedgerStore, rows: SoundRows, rules: Rules, now_s: float) -> int:
    """Drop what is not needed; returns how many receipts went.

    Args:
        store: The ledger's tables.
        rows: Finds the rows that count, and verifies them.
        rules: Of the swarm.
        now_s: Unix seconds.

    Raises:
        LedgerNotWritten, LedgerDamaged: The file or its disk does not allow it.
    """
    before = first_kept_epoch(store.read(receipt_table.newest_epoch), now_s, rules)
    num_dropped = 0
    while slots := store.read(lambda db: receipt_table.crowded_slots(db, before, SLOTS_AT_ONCE)):
        newest = [(own, slot, found[0].seq) for own, slot in slots if (found := rows.newest_of(own, slot)) is not None]
        num = store.write(_dropping(newest))
        num_dropped += num
        if not num:  # what is left is damaged
            break
    store.write(lambda db: reservation_table.merge_reservations(db, before))
    if num_dropped:
        # By execute() Python takes one step, which frees one page.
        store.read(lambda db: db.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES})"))
    return num_dropped


def _dropping(newest: list[tuple[str, Slot, int]]) -> Callable[[sqlite3.Connection], int]:
    return lambda db: sum(receipt_table.drop_older(db, own, slot, seq) for own, slot, seq in newest)
