"""Turn what SQLite and the system say of a ledger's file into one sentence with the mend. Pure."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dht.errors import LedgerDamaged, LedgerNotWritten

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)

_MENDS = {
    sqlite3.SQLITE_FULL: "The disk is full with the ledger {path}; free some space.",
    sqlite3.SQLITE_READONLY: "The ledger {path} cannot be written; make its directory writable.",
    sqlite3.SQLITE_CANTOPEN: "The ledger {path} cannot be opened; make its directory writable, or choose another.",
    sqlite3.SQLITE_PERM: "The ledger {path} cannot be opened; make its directory writable, or choose another.",
    sqlite3.SQLITE_BUSY: "Another process has kept the ledger {path} busy for 10 s; end it, or try again.",
    sqlite3.SQLITE_IOERR: "The ledger {path} cannot be read or written ({error}); check that disk.",
}

_OTHER = "The ledger {path} cannot be used ({error}); start the node again, and report it if that does not help."


@contextlib.contextmanager
def in_words(path: Path | None) -> Iterator[None]:
    """Turn what SQLite and the system say into one sentence with the mend."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise LedgerDamaged(str(error)) from error
        raise LedgerNotWritten(_MENDS.get(code, _OTHER).format(path=path, error=error)) from error
    except OSError as error:
        raise LedgerNotWritten(f"The ledger {path} cannot be used ({error.strerror}); {_mend(error)}.") from error


def _mend(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on that disk"
    return "make its directory writable, or choose another"
