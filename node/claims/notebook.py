"""What a node must not forget about claims: votes before they are published, its claims' numbers, sightings, rulings.

Of rulings there are two kinds: what this node found final, by whose trust, and what it has signed of that as an anchor.

    opinion, salt ──keep_ballot──> disk ──> commitment published ──> opened, from the disk

A member that forgot its salt could not open its commitment; one that made another commitment, or an accuser that gave
one number to two claims, would have none that counts. So all of it stands here first, and what stands is used again.

A SQLite file in the node's home. Waits for its disk: ``asyncio.to_thread``; calls exclude each other.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from dht.claim import MAX_CLAIMS
from dht.codec import encode
from dht.errors import BadRecord
from dht.judgement.kept_rulings import pack_ruling, unpack_ruling
from dht.judgement.outcomes import Ruling
from dht.standing.sightings import Sighting
from dht.verdict import Opinion

logger = logging.getLogger("efedllm")

NOTEBOOK = "claims.sqlite"
"""Its name in a node's home."""

_TABLES = """
CREATE TABLE IF NOT EXISTS ballots (
    claim BLOB, level INTEGER, epoch INTEGER NOT NULL, opinion INTEGER NOT NULL, salt BLOB NOT NULL,
    error_ppm INTEGER NOT NULL, commitment BLOB NOT NULL, PRIMARY KEY (claim, level)
);
CREATE TABLE IF NOT EXISTS claims (
    epoch INTEGER, number INTEGER, chunk BLOB UNIQUE NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (epoch, number)
);
CREATE TABLE IF NOT EXISTS sightings (record BLOB PRIMARY KEY, epoch INTEGER NOT NULL, seen_s REAL);
CREATE TABLE IF NOT EXISTS rulings (
    claim BLOB, anchors BLOB, epoch INTEGER NOT NULL, ruling BLOB NOT NULL, PRIMARY KEY (claim, anchors)
);
CREATE TABLE IF NOT EXISTS signed_rulings (claim BLOB PRIMARY KEY, epoch INTEGER NOT NULL, envelope BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One vote of this node."""

    claim: bytes
    """Hash of the claim, 32 bytes."""
    level: int
    """1 to 3."""
    epoch: int
    """Of the claim."""
    opinion: Opinion
    salt: bytes
    """32 random bytes."""
    error_ppm: int
    """That goes with the opinion."""
    commitment: bytes
    """Envelope of the signed commitment, as it is published."""


class Notebook:
    """One node's notes about claims. Closed by ``close``; raises ``OSError`` where the disk does not do its part."""

    def __init__(self, file: sqlite3.Connection) -> None:
        self._file = file
        self._alone = threading.Lock()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Have the file alone; what failed half way is undone."""
        with self._alone:
            try:
                yield self._file
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):  # SQLite has undone it itself, or the file is damaged.
                    self._file.rollback()
                raise OSError(f"what is noted about claims cannot be read or written: {error}") from error

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Open the file, or keep everything in memory; a file that is damaged is put aside, for a new one.

        What was in it costs votes that were not opened yet, and nobody else anything.

        Raises:
            OSError: it cannot be written.
        """
        if path is None:
            return cls(_connect(":memory:"))
        try:
            return cls(_connect(path))
        except sqlite3.OperationalError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            logger.warning("%s is damaged (%s): it is put aside as %s, and a new one begun", path, error, aside.name)
            path.replace(aside)
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            return cls(_connect(path))

    def close(self) -> None:
        """Close the file."""
        with self._alone:
            self._file.close()

    def keep_ballot(self, ballot: Ballot) -> Ballot:
        """Write a vote down; return the one that stands, which is an earlier one where there is one."""
        row = (ballot.claim, ballot.level, ballot.epoch, int(ballot.opinion), ballot.salt, ballot.error_ppm)
        with self._using() as file:
            file.execute("INSERT OR IGNORE INTO ballots VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, ballot.commitment))
        standing = self.ballot(ballot.claim, ballot.level)
        assert standing is not None
        return standing

    def ballot(self, claim: bytes, level: int) -> Ballot | None:
        """Return the vote of this node at a level; None: it has none."""
        with self._using() as file:
            found = file.execute("SELECT * FROM ballots WHERE claim = ? AND level = ?", (claim, level)).fetchone()
        if found is None:
            return None
        claim, level, epoch, opinion, salt, error_ppm, commitment = found
        return Ballot(claim, level, epoch, Opinion(opinion), salt, error_ppm, commitment)

    def numbers_left(self, epoch: int) -> list[int]:
        """Return the numbers that no claim of an epoch has yet."""
        with self._using() as file:
            taken = {number for (number,) in file.execute("SELECT number FROM claims WHERE epoch = ?", (epoch,))}
        return [number for number in range(MAX_CLAIMS) if number not in taken]

    def keep_claim(self, epoch: int, number: int, chunk: bytes, envelope: bytes) -> bool:
        """Write a claim down; say whether it is the first of its number, and about its chunk."""
        with self._using() as file:
            row = (epoch, number, chunk, envelope)
            return file.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", row).rowcount > 0

    def claims_since(self, epoch: int) -> list[bytes]:
        """Return the envelopes of this node's claims from an epoch on."""
        with self._using() as file:
            rows = file.execute("SELECT envelope FROM claims WHERE epoch >= ? ORDER BY epoch, number", (epoch,))
            return [envelope for (envelope,) in rows]

    def note_sightings(self, new: Iterable[Sighting]) -> None:
        """Write down what was seen for the first time."""
        with self._using() as file:
            file.execute("BEGIN")
            file.executemany("INSERT OR IGNORE INTO sightings VALUES (?, ?, ?)", new)
            file.execute("COMMIT")

    def sightings(self) -> list[Sighting]:
        """Return all that was seen."""
        with self._using() as file:
            return [Sighting(*row) for row in file.execute("SELECT * FROM sightings")]

    def keep_rulings(self, rulings: Iterable[Ruling], anchors: Collection[str]) -> None:
        """Write down rulings that are final by the trust of some anchors."""
        whose = _digest_of(anchors)
        rows = [(ruling.claim, whose, ruling.epoch, pack_ruling(ruling)) for ruling in rulings]
        with self._using() as file:
            file.execute("BEGIN")
            file.executemany("INSERT OR IGNORE INTO rulings VALUES (?, ?, ?, ?)", rows)
            file.execute("COMMIT")

    def rulings(self, anchors: Collection[str]) -> dict[bytes, Ruling]:
        """Return the rulings that stand by these anchors, by the hash of their claim: who names others judges anew."""
        with self._using() as file:
            return _rulings_in(file, anchors)

    def keep_signed(self, claim: bytes, epoch: int, envelope: bytes) -> None:
        """Write down what this anchor has signed about a claim; the first of one claim stays."""
        with self._using() as file:
            file.execute("INSERT OR IGNORE INTO signed_rulings VALUES (?, ?, ?)", (claim, epoch, envelope))

    def signed_since(self, epoch: int) -> dict[bytes, bytes]:
        """Return the envelopes of what this anchor has signed, by the hash of the claim, of claims from an epoch on."""
        with self._using() as file:
            query = "SELECT claim, envelope FROM signed_rulings WHERE epoch >= ?"
            return dict(file.execute(query, (epoch,)).fetchall())

    def forget_before(self, epoch: int) -> None:
        """Drop what is about claims of earlier epochs; rulings stay, as convictions outlive what they rest on."""
        with self._using() as file:
            for table in ("ballots", "claims", "sightings"):
                file.execute(f"DELETE FROM {table} WHERE epoch < ?", (epoch,))  # noqa: S608 - names of ours

    def forget_rulings_before(self, epoch: int) -> None:
        """Drop rulings that count no more."""
        with self._using() as file:
            file.execute("DELETE FROM rulings WHERE epoch < ?", (epoch,))
            file.execute("DELETE FROM signed_rulings WHERE epoch < ?", (epoch,))


def kept_rulings(path: Path, anchors: Collection[str]) -> dict[bytes, Ruling]:
    """Return what a node found final, from its file, which is left as it is; nothing where it cannot be read."""
    if not path.is_file():
        return {}
    is_open = path.with_name(path.name + "-wal").exists()  # Else SQLite would leave files of its own beside it.
    how = "mode=ro" if is_open else "mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as file:
            return _rulings_in(file, anchors)
    except sqlite3.Error as error:
        logger.warning("what is kept of claims in %s cannot be read, and is judged anew: %s", path, error)
        return {}


def _rulings_in(file: sqlite3.Connection, anchors: Collection[str]) -> dict[bytes, Ruling]:
    whose = (_digest_of(anchors),)
    rows = file.execute("SELECT claim, ruling FROM rulings WHERE anchors = ?", whose).fetchall()
    return {claim: ruling for claim, packed in rows if (ruling := _read(packed)) is not None}


def _digest_of(anchors: Collection[str]) -> bytes:
    return sha256(encode(sorted(anchors))).digest()


def _read(packed: bytes) -> Ruling | None:
    try:
        return unpack_ruling(packed)
    except BadRecord as error:
        logger.warning("what was kept of a claim cannot be read, and is judged anew: %s", error)
        return None


def _connect(place: Path | str) -> sqlite3.Connection:
    file = sqlite3.connect(place, check_same_thread=False, isolation_level=None)
    try:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.executescript(_TABLES)
        (found,) = file.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    except sqlite3.Error:
        file.close()
        raise
    return file
