"""Hold the SQLite file behind a ledger: its tables, who has it open, what is done when it is damaged.

    ledger.sqlite                       the file, in WAL mode
    ledger.sqlite-wal, -shm             SQLite's own
    ledger.sqlite.lock                  shared by all who have it open; exclusive while a damaged one is replaced
    ledger.sqlite.damaged-<date>        a damaged one, kept

It does not know what the rows mean. Every call may block, for 10 s where another process writes; ``ledger`` lets one
thread in at a time.
"""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from dht.errors import LedgerDamaged, LedgerNotWritten
from dht.receipts.ledger_schema import check_kind, prepare, version_of
from dht.receipts.ledger_words import in_words, is_locked_away, locked_away
from dht.receipts.seq_blocks import floor_after

BUSY_S = 10.0
"""Seconds that other processes may take to finish their writing."""

PATIENCE_S = 5.0
"""Seconds that other processes may take to let go of a damaged file."""

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]


class LedgerFile:
    """One open file, or a database in memory where ``path`` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.is_new = False
        """Whether the tables were made here."""
        self._lock = _take_lock(path) if path is not None else None
        try:
            self.connection = self._open()
        except BaseException:
            self._unlock()
            raise

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            _refuse_directory(self.path)
        floor = floor_after(0, count_lost(self.path))
        if self._is_emptied():
            raise LedgerDamaged("it has been emptied")
        with in_words(self.path):
            if self.path is not None and not self.path.exists():
                self.path.touch(0o600)  # Who used whom is nobody else's business; SQLite's own files follow.
            connection = _connect(":memory:" if self.path is None else str(self.path))
            try:
                self.is_new = prepare(connection, floor)
            except BaseException:
                connection.close()
                raise
            return connection

    def _is_emptied(self) -> bool:
        """Say whether the file has lost all that it held; another process may only just be making it."""
        if self.path is None or self._lock is None or not _is_empty(self.path):
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return _is_empty(self.path)

    @classmethod
    def copy_of(cls, path: Path) -> Self:
        """Read a file where nothing can be written into a database in memory.

        Raises:
            LedgerNotWritten, LedgerDamaged: It cannot be read, or is damaged.
        """
        _refuse_directory(path)
        opened = cls(None)
        try:
            with in_words(path), contextlib.closing(_connect_to_read(path)) as source:
                check_kind(source)
                source.backup(opened.connection)
                prepare(opened.connection)
        except LedgerDamaged as error:
            opened.close()
            raise LedgerDamaged(
                f"The ledger {path} is damaged ({error}); make its directory writable: it is then moved aside, and a"
                " new one begun."
            ) from error
        return opened

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(sqlite3.Error):  # A damaged file may not take the last of its WAL.
            self.connection.close()
        self._unlock()

    def read(self, work: Work[_T]) -> _T:
        """Call ``work`` with the connection.

        Raises:
            LedgerNotWritten, LedgerDamaged: The file or its disk does not allow it.
        """
        with in_words(self.path):
            return work(self.connection)

    def write(self, work: Work[_T], *, durable: bool = False) -> _T:
        """Call ``work`` in a transaction, whole or not at all; ``durable``: on the disk before this returns.

        Raises:
            LedgerNotWritten, LedgerDamaged: The file or its disk does not allow it; nothing has been written.
        """
        with in_words(self.path):
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(self.connection)
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back itself, or the file is damaged.
                    self.connection.execute("ROLLBACK")
                raise
            return result

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Open without writing; what other processes have not yet moved out of the WAL is read where that is possible."""
    for option in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{option}", uri=True)
        try:
            version_of(connection)
        except sqlite3.OperationalError:
            connection.close()
        else:
            return connection
    if is_locked_away(path):
        raise LedgerNotWritten(locked_away(path))
    raise LedgerNotWritten(f"The ledger {path} cannot be read; ask its owner for permission.")


def _refuse_directory(path: Path) -> None:
    if path.is_dir():
        raise LedgerNotWritten(f"{path} is a directory, and should be the file of the ledger; move it away.")


def _take_lock(path: Path) -> int:
    with in_words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor


def move_aside(path: Path, why: str, now_s: float) -> Path | None:
    """Give a damaged file another name, with what SQLite keeps beside it; it must not be open here.

    Returns:
        The new name; None where another process has done it meanwhile.

    Raises:
        LedgerDamaged: Another process has the file open.
        LedgerNotWritten: The directory cannot be written.
    """
    lock = _take_lock(path)
    try:
        _make_exclusive(lock, path, why)
        if _is_sound(path):
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))
        target = _free_name(path, _aside(path, stamp))
        with in_words(path):
            for suffix in ("-shm", "-wal", ""):  # The file itself last: a crash in between leaves it to be moved.
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
        return target
    finally:
        os.close(lock)


def _make_exclusive(lock: int, path: Path, why: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                raise LedgerDamaged(
                    f"The ledger {path} is damaged ({why}) and another process has it open; stop every node of this"
                    " directory and start again: it is then moved aside, and a new one begun."
                ) from None
            fcntl.flock(lock, fcntl.LOCK_UN)  # Two that wait for each other would wait for ever.
            time.sleep(0.05)
        else:
            return


def _is_sound(path: Path) -> bool:
    if not path.exists():
        return True
    if _is_empty(path):
        return False
    try:
        with in_words(path), contextlib.closing(_connect(str(path))) as connection:
            prepare(connection)
    except LedgerDamaged:
        return False
    return True


def count_lost(path: Path | None) -> int:
    """Count the files of a ledger that were moved aside, and the one that is there if it is empty."""
    if path is None:
        return 0
    with in_words(path):
        return len(kept_aside(path)) + _is_empty(path)


def kept_aside(path: Path) -> list[Path]:
    """Name the files of a ledger that were moved aside, the oldest first."""
    names = {name.name.removesuffix("-wal").removesuffix("-shm") for name in path.parent.glob(_aside(path, "*"))}
    return [path.with_name(name) for name in sorted(names)]


def _is_empty(path: Path) -> bool:
    with in_words(path):
        return path.exists() and path.stat().st_size == 0


def _aside(path: Path, stamp: str) -> str:
    return f"{path.name}.damaged-{stamp}"


def _free_name(path: Path, name: str) -> Path:
    candidates = (path.with_name(name + (f"-{n}" if n else "")) for n in range(10_000))
    return next(candidate for candidate in candidates if not candidate.exists())
