"""Find the rows of a ledger that count: a damaged one is set aside, and the one before it takes its place.

A row whose signatures were found good is remembered, so that the newest receipts can be asked for often. Every call may
block; any thread may call.
"""

from collections.abc import Callable

from dht.receipts import receipt_table
from dht.receipts.cosigned import check_receipt
from dht.receipts.ledger_store import LedgerStore
from dht.receipts.receipt_rows import Finding, complaint
from dht.receipts.receipt_table import Row
from dht.work import Receipt, Slot

MAX_REMEMBERED = 65536
"""Rows whose good signatures are remembered."""


class SoundRows:
    """The rows of one ledger's receipts, each with the receipt that it holds."""

    def __init__(self, store: LedgerStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._verified: dict[tuple[int, int], Receipt] = {}  # by generation of the file and hash of the row

    def newest(self, own: str, since_s: int, before_s: int, since_epoch: int = 0) -> list[tuple[Receipt, Row]]:
        """List the newest of every slot whose work ended in that time, in a fixed order; unix seconds."""
        with self._store.lock:
            while True:
                rows = self._store.read(lambda db: receipt_table.newest(db, own, since_s, before_s, since_epoch))
                sound = [(receipt, row) for row in rows if (receipt := self._sound(row)) is not None]
                if len(sound) == len(rows):
                    return sorted(sound, key=lambda pair: (pair[0].epoch, pair[0].slot, pair[0].seq))

    def newest_of(self, own: str, slot: Slot) -> tuple[Receipt, Row] | None:
        """Return the newest of one slot."""
        with self._store.lock:
            while row := self._store.read(lambda db: receipt_table.newest_of(db, own, slot)):
                receipt = self._sound(row)
                if receipt is not None:
                    return receipt, row
            return None

    def verify(self) -> tuple[int, list[Finding]]:
        """Check every row; returns how many were checked, and those that were set aside now."""
        with self._store.lock:
            self._verified.clear()
            num, after = 0, 0
            findings: list[Finding] = []
            while rows := self._page(after):
                num, after = num + len(rows), rows[-1].row_id
                findings += [Finding(row.row_id, reason) for row in rows if (reason := complaint(row)) is not None]
            for finding in findings:
                self._set_aside(finding)
            return num, findings

    def _page(self, after: int) -> list[Row]:
        return self._store.read(lambda db: receipt_table.page(db, after))

    def _sound(self, row: Row) -> Receipt | None:
        key = (self._store.generation, hash(row))  # A number may have been another row's, dropped by another process.
        if key in self._verified:
            return self._verified[key]
        reason = complaint(row)
        if reason is not None:
            self._set_aside(Finding(row.row_id, reason))
            return None
        if len(self._verified) >= MAX_REMEMBERED:
            self._verified.clear()
        return self._verified.setdefault(key, check_receipt(row.envelope))

    def _set_aside(self, finding: Finding) -> None:
        self._store.write(lambda db: receipt_table.set_aside(db, finding.row, finding.reason, self._clock()))
        self._store.notices.append(
            f"Row {finding.row} of the ledger is damaged ({finding.reason}) and does not count; the DHT may hold it."
        )
