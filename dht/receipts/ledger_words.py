"""Turn what SQLite and the system say of a ledger's file into one sentence with the mend.

It looks at the file's permissions, and writes nothing. It may block.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dht.errors import LedgerDamaged, LedgerNotWritten

GARBLED = "parts of it have been overwritten or cut off"
"""What SQLite finds in a file whose pages do not fit together."""

_DAMAGED = {
    sqlite3.SQLITE_CORRUPT: GARBLED,
    sqlite3.SQLITE_NOTADB: "its beginning has been overwritten",
    sqlite3.SQLITE_FORMAT: "its beginning has been overwritten",
}

_MENDS = {
    sqlite3.SQLITE_FULL: "The disk is full with the ledger {path}; free some space.",
    sqlite3.SQLITE_READONLY: "The ledger {path} cannot be written; make its directory writable.",
    sqlite3.SQLITE_CANTOPEN: "The ledger {path} cannot be opened; make its directory writable, or choose another.",
    sqlite3.SQLITE_PERM: "The ledger {path} cannot be opened; make its directory writable, or choose another.",
    sqlite3.SQLITE_BUSY: "Another process has kept the ledger {path} busy for 10 s; end it, or try again.",
    sqlite3.SQLITE_IOERR: "The ledger {path} cannot be read or written ({error}); check that disk.",
}

_OF_ACCESS = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)

_OTHER = "The ledger {path} cannot be used ({error}); start the node again, and report it if that does not help."


@contextlib.contextmanager
def in_words(path: Path | None) -> Iterator[None]:
    """Turn what SQLite and the system say into one sentence with the mend."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise LedgerDamaged(_DAMAGED[code]) from error
        if code in _OF_ACCESS and path is not None and is_locked_away(path):
            raise LedgerNotWritten(locked_away(path)) from error
        raise LedgerNotWritten(_MENDS.get(code, _OTHER).format(path=path, error=error)) from error
    except OSError as error:
        if isinstance(error, PermissionError) and path is not None and is_locked_away(path):
            raise LedgerNotWritten(locked_away(path)) from error
        raise LedgerNotWritten(f"The ledger {path} cannot be used ({error.strerror}); {_mend(error)}.") from error


def is_locked_away(path: Path) -> bool:
    """Say whether it is the file itself, and not its directory, that this user may not read and write."""
    if not os.access(path, os.F_OK):
        return False
    is_written_beside = os.access(path.parent, os.W_OK)
    return not os.access(path, os.R_OK) or (is_written_beside and not os.access(path, os.W_OK))


def locked_away(path: Path) -> str:
    """Say so, with the mend."""
    return f"The ledger {path} may not be read and written by this user; allow it: chmod u+rw {path}"


def _mend(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on that disk"
    return "make its directory writable, or choose another"
