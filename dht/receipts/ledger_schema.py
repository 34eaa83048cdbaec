"""Make and check the tables of a ledger's file.

It does not know what the rows mean, nor whose file it is. It runs where a ledger is opened, and may block.
"""

import contextlib
import logging
import sqlite3

from dht.errors import LedgerDamaged, LedgerNotWritten
from dht.receipts.ledger_words import GARBLED

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""What ``user_version`` of the file says; a file with a higher one belongs to a newer program."""

APPLICATION_ID = 0x65464C67
"""What ``application_id`` of the file says ("eFLg")."""

# SQLite keeps this text, comments included. While it fits into the first page, damage elsewhere does not reach it.
_SCHEMA = """
CREATE TABLE peers (  -- so that rows of receipts are short
    id INTEGER PRIMARY KEY,
    peer BLOB NOT NULL UNIQUE  -- binary peer id
)

CREATE TABLE receipts (
    id INTEGER PRIMARY KEY,
    own INTEGER NOT NULL,  -- peers.id under which this home keeps it, an author; so the next two
    provider INTEGER NOT NULL,
    consumer INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    work_kind INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    t_last INTEGER NOT NULL,  -- unix seconds
    amount INTEGER NOT NULL,
    envelope BLOB NOT NULL  -- byte for byte as on the DHT; what stands before it is repeated from here
)

CREATE INDEX receipts_by_slot
ON receipts (own, provider, consumer, epoch, lane, work_kind, seq, t_last, amount)

CREATE TRIGGER receipts_stay BEFORE DELETE ON receipts
WHEN NOT EXISTS (
    SELECT 1 FROM receipts AS newer
    WHERE newer.own = old.own AND newer.provider = old.provider AND newer.consumer = old.consumer
    AND newer.epoch = old.epoch AND newer.lane = old.lane AND newer.work_kind = old.work_kind
    AND newer.seq > old.seq AND newer.id NOT IN (SELECT receipt FROM set_aside)
)
BEGIN SELECT RAISE(ABORT, 'the newest receipt of a slot stays'); END

CREATE TRIGGER receipts_stay_as_they_are BEFORE UPDATE ON receipts
BEGIN SELECT RAISE(ABORT, 'receipts are never changed'); END

CREATE TABLE set_aside (  -- rows of receipts that do not count, because they are damaged
    receipt INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,
    found_s INTEGER NOT NULL  -- unix seconds
)

CREATE TABLE reservations (  -- peers as binary ids
    own BLOB NOT NULL,
    provider BLOB NOT NULL,
    consumer BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    work_kind INTEGER NOT NULL,
    up_to INTEGER NOT NULL,  -- the highest seq that may have been signed; where there are no peers: in any slot
    checksum INTEGER NOT NULL,  -- CRC-32 of the other columns in canonical form
    PRIMARY KEY (own, provider, consumer, epoch, lane, work_kind)
) WITHOUT ROWID

CREATE TABLE seq_floor (  -- one row
    floor INTEGER NOT NULL  -- up to it, a lost file of this home may have held reservations
)

CREATE TABLE unsigned_ends (  -- sessions that ended with work that a peer did not sign
    id INTEGER PRIMARY KEY,
    own BLOB NOT NULL,
    peer BLOB NOT NULL,
    peer_provides INTEGER NOT NULL,  -- 1: the peer worked; 0: it consumed
    manifest BLOB NOT NULL,
    amount INTEGER NOT NULL,  -- tokens
    t INTEGER NOT NULL  -- unix seconds
)

CREATE TABLE standings (  -- consumers who have not always signed
    own BLOB NOT NULL,
    peer BLOB NOT NULL,
    num_unsigned INTEGER NOT NULL,  -- sessions that ended so, less those since that were signed for
    t INTEGER NOT NULL,  -- when it changed last, unix seconds
    PRIMARY KEY (own, peer)
) WITHOUT ROWID

CREATE INDEX standings_by_time ON standings (own, t)

CREATE TABLE free_lanes (  -- lanes of a consumer that no process uses
    id INTEGER PRIMARY KEY,
    own BLOB NOT NULL,
    provider BLOB NOT NULL,
    manifest BLOB NOT NULL,
    first_block INTEGER NOT NULL,
    end_block INTEGER NOT NULL,
    profile BLOB NOT NULL,
    lane INTEGER NOT NULL,
    boot BLOB NOT NULL,
    t INTEGER NOT NULL,
    checksum INTEGER NOT NULL  -- CRC-32 of the others
)

CREATE TABLE models (  -- what people call the models that this home has met
    manifest BLOB PRIMARY KEY,
    name TEXT NOT NULL
) WITHOUT ROWID

INSERT INTO seq_floor VALUES (0)
""".strip().split("\n\n")

_MARKS = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")
_NAMES = {statement.split()[2] for statement in _SCHEMA if statement.startswith("CREATE")}


def prepare(connection: sqlite3.Connection, least_floor: int = 0) -> bool:
    """Check the file, make the tables where there are none, lift its floor of numbers; returns whether it made them.

    Raises:
        LedgerDamaged: It is no ledger, or not whole; the message says why in a few words.
        LedgerNotWritten: It belongs to a newer program.
    """
    check_kind(connection)
    if version_of(connection) == 0:  # Only where nothing has been written yet does it count.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        logger.info("the ledger's file is not whole: %s", finding)
        raise LedgerDamaged(GARBLED)
    connection.execute("BEGIN IMMEDIATE")
    try:
        is_new = version_of(connection) == 0
        for statement in (*_SCHEMA, *_MARKS) if is_new else ():
            connection.execute(statement)
        _check_names(connection)
        connection.execute("UPDATE seq_floor SET floor = ? WHERE floor < ?", (least_floor, least_floor))
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    return is_new


def version_of(connection: sqlite3.Connection) -> int:
    """Read the version of the tables; 0 where there are none."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def check_kind(connection: sqlite3.Connection) -> None:
    """Refuse another program's database, and a ledger of a newer program."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    version = version_of(connection)
    if application != APPLICATION_ID and tables:
        raise LedgerDamaged("it is some other database")
    if version > SCHEMA_VERSION:
        raise LedgerNotWritten(f"The ledger has version {version}, this program knows {SCHEMA_VERSION}; update it.")


def _check_names(connection: sqlite3.Connection) -> None:
    held = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    lacking = sorted(_NAMES - held)
    if lacking:
        raise LedgerDamaged(f"its {lacking[0]} are missing")
