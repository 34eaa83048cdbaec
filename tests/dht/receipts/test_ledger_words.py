"""What SQLite says becomes one sentence, whatever it says."""

import sqlite3
from pathlib import Path

import pytest

from dht.errors import LedgerDamaged, LedgerNotWritten
from dht.receipts.ledger_words import in_words


def failure(code: int | None) -> sqlite3.Error:
    error = sqlite3.OperationalError("it says so")
    if code is not None:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("code", [None, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, 250])
def test_what_nobody_foresaw_ends_no_node(code):
    said = r"ledger.sqlite cannot be used \(it says so\); start the node again"
    with pytest.raises(LedgerNotWritten, match=said), in_words(Path("ledger.sqlite")):
        raise failure(code)


def test_a_full_disk_and_a_damaged_file_are_told_apart():
    with pytest.raises(LedgerNotWritten, match="free some space"), in_words(Path("ledger.sqlite")):
        raise failure(sqlite3.SQLITE_FULL)
    with pytest.raises(LedgerDamaged, match="overwritten or cut off"), in_words(Path("ledger.sqlite")):
        raise failure(sqlite3.SQLITE_CORRUPT | 1 << 8)
