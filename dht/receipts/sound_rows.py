"""Find the rows of a ledger that count: a damaged one is set aside, and the one before it takes its place.

A row beside whose whole envelope something else was changed is made again from the envelope: signatures decide.

A row whose signatures were found good is remembered, so that the newest receipts can be asked for often. While they are
checked other threads are let at the ledger. Every call may block; any thread may call.
"""

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from dht.receipts import receipt_table
from dht.receipts.cosigned import check_receipt
from dht.receipts.ledger_store import LedgerStore
from dht.receipts.receipt_rows import Finding, complaint, put_aside
from dht.receipts.receipt_table import Row
from dht.work import Receipt, Slot

MAX_REMEMBERED = 65536
"""Rows whose good signatures are remembered."""


_T = TypeVar("_T")


class SoundRows:
    """The rows of one ledger's receipts, each with the receipt that it holds."""

    def __init__(self, store: LedgerStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._verified: dict[tuple[int, int], Receipt] = {}  # by generation of the file and hash of the row

    def newest(self, own: str, since_s: int, before_s: int, since_epoch: int = 0) -> list[tuple[Receipt, Row]]:
        """List the newest of every slot whose work ended in that time, in a fixed order; unix seconds."""
        while True:
            generation, rows = self._read(lambda db: receipt_table.newest(db, own, since_s, before_s, since_epoch))
            sound = [(receipt, row) for row in rows if (receipt := self._sound(generation, row)) is not None]
            if len(sound) == len(rows):
                return sorted(sound, key=lambda pair: (pair[0].epoch, pair[0].slot, pair[0].seq))

    def newest_of(self, own: str, slot: Slot) -> tuple[Receipt, Row] | None:
        """Return the newest of one slot."""
        while True:
            generation, row = self._read(lambda db: receipt_table.newest_of(db, own, slot))
            if row is None:
                return None
            receipt = self._sound(generation, row)
            if receipt is not None:
                return receipt, row

    def verify(self) -> tuple[int, list[Finding]]:
        """Check every row; returns how many were checked, and those that were set aside now."""
        self._verified.clear()
        num, after = 0, 0
        findings: list[Finding] = []
        # A file that is begun anew meanwhile holds only what was checked when it was copied.
        while rows := self._read(lambda db: receipt_table.page(db, after))[1]:  # noqa: B023 - called at once
            num, after = num + len(rows), rows[-1].row_id
            unsound = [(row, reason) for row in rows if (reason := complaint(row)) is not None]
            findings += [Finding(row.row_id, reason) for row, reason in unsound if self._set_aside(row, reason)]
        return num, findings

    def _read(self, question: Callable[[sqlite3.Connection], _T]) -> tuple[int, _T]:
        """Ask the tables, and say which file has answered; signatures are checked when others are let in again."""
        with self._store.lock:
            answer = self._store.read(question)
            return self._store.generation, answer

    def _sound(self, generation: int, row: Row) -> Receipt | None:
        key = (generation, hash(row))  # A number may have been another row's, dropped by another process.
        known = self._verified.get(key)
        if known is not None:
            return known
        reason = complaint(row)
        if reason is not None:
            self._set_aside(row, reason)
            return None
        if len(self._verified) >= MAX_REMEMBERED:
            self._verified.clear()
        return self._verified.setdefault(key, check_receipt(row.envelope))

    def _set_aside(self, row: Row, reason: str) -> bool:
        """Put a damaged row right or aside; False where another has its number by now, whoever dropped it."""

        def write(db: sqlite3.Connection) -> bool | None:
            is_there = receipt_table.row(db, row.row_id) == row
            return put_aside(db, row, reason, self._clock()) if is_there else None

        is_rebuilt = self._store.write(write)
        if is_rebuilt is not None:
            mended = (
                f"Row {row.row_id} of the ledger was damaged ({reason}); it was made again from its signed envelope."
            )
            lost = f"Row {row.row_id} of the ledger is damaged ({reason}) and does not count; the DHT may hold it."
            self._store.note(mended if is_rebuilt else lost)
        return is_rebuilt is not None
