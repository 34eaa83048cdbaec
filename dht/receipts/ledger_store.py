"""Let one thread at a time at a ledger's file, and replace the file where it is damaged.

A damaged file is moved aside, what can be read of it is copied into a new one, and numbers go on far above those that
may have been signed. It does not know what a caller does with the tables. Every call may block.
"""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dht.errors import BadRecord, LedgerDamaged, LedgerNotWritten
from dht.receipts import reservation_table
from dht.receipts.ledger_file import LedgerFile, Work, move_aside
from dht.receipts.receipt_rows import check_own, insert
from dht.receipts.salvage import Salvage, salvage
from dht.receipts.seq_blocks import floor_after

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


def log_notice(sentence: str) -> None:
    """Tell people that something in a ledger was damaged."""
    logger.warning("%s", sentence)


class LedgerStore:
    """The tables of one ledger.

    ``notices`` are sentences for people about what was damaged and what became of it; ``generation`` counts the files
    that were begun here, so that a caller forgets the numbers of rows of an older one; ``is_new`` says whether the file
    was begun when it was opened.
    """

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float],
        file: LedgerFile | None = None,
        tell: Callable[[str], None] = log_notice,
    ) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.notices: list[str] = []
        self.generation = 0
        self.is_new = False
        self._clock = clock
        self._file = file
        self._tell = tell
        self._is_closed = False
        self._attempt(lambda _: None)

    def read(self, work: Work[_T]) -> _T:
        """Call ``work`` with a connection; see ``LedgerFile.read``."""
        return self._attempt(lambda file: file.read(work))

    def write(self, work: Work[_T], *, durable: bool = False) -> _T:
        """Call ``work`` in a transaction; see ``LedgerFile.write``. It may be called twice, with two files."""
        return self._attempt(lambda file: file.write(work, durable=durable))

    def note(self, notice: str) -> None:
        """Tell people that something was damaged, in a sentence, at once."""
        self.notices.append(notice)
        self._tell(notice)

    def close(self) -> None:
        """Let go of the file."""
        with self.lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _attempt(self, act: Callable[[LedgerFile], _T]) -> _T:
        with self.lock:
            try:
                return act(self._opened())
            except LedgerDamaged as error:
                self._renew(str(error))
            try:
                return act(self._opened())
            except LedgerDamaged as error:
                raise LedgerDamaged(
                    f"The ledger {self.path} is damaged again as soon as it was begun anew ({error}); check that disk."
                ) from error

    def _opened(self) -> LedgerFile:
        if self._is_closed:
            raise LedgerNotWritten(f"The ledger {self.path} has been closed.")
        if self._file is None:
            self._file = LedgerFile(self.path)
            self.is_new = self._file.is_new
        return self._file

    def _renew(self, why: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.path is None:
            raise LedgerDamaged(f"The ledger in memory is damaged ({why}).")
        moved = move_aside(self.path, why, self._clock())
        self.generation += 1
        if moved is None:
            return
        held = salvage(moved)
        num = self._opened().write(lambda db: _refill(db, held, self._clock()), durable=True)
        self.note(
            f"The ledger {self.path} was damaged ({why}); it is kept as {moved.name}, and a new one begun with"
            f" {num} receipts out of it. The DHT may hold the others."
        )


def _refill(db: sqlite3.Connection, held: Salvage, now_s: float) -> int:
    """Write what was salvaged; returns how many receipts of it are sound."""
    reservation_table.raise_floor(db, floor_after(held.floor, 1))
    for own, end in held.ends:
        reservation_table.add_unsigned_end(db, own, end)
    for manifest, name in held.models.items():
        reservation_table.add_model_name(db, manifest, name)
    num = 0
    for own, envelope in held.envelopes:
        with contextlib.suppress(BadRecord):
            num += insert(db, own, check_own(own, envelope), envelope, now_s) is True
    return num
