"""What a node must not forget about claims: its votes before they are published, its claims' numbers, what it has seen.

    opinion, salt ──keep_ballot──> disk ──> commitment published ──> opened, from the disk

A member that forgot its salt could not open its commitment; one that made another commitment, or an accuser that gave
one number to two claims, would have none that counts. So all of it stands here first, and what stands is used again.

A SQLite file in the node's home. Waits for its disk: ``asyncio.to_thread``; calls exclude each other.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dht.claim import MAX_CLAIMS
from dht.standing.sightings import Sighting
from dht.verdict import Opinion

_TABLES = """
CREATE TABLE IF NOT EXISTS ballots (
    claim BLOB, level INTEGER, epoch INTEGER NOT NULL, opinion INTEGER NOT NULL, salt BLOB NOT NULL,
    error_ppm INTEGER NOT NULL, commitment BLOB NOT NULL, PRIMARY KEY (claim, level)
);
CREATE TABLE IF NOT EXISTS claims (
    epoch INTEGER, number INTEGER, chunk BLOB UNIQUE NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (epoch, number)
);
CREATE TABLE IF NOT EXISTS sightings (record BLOB PRIMARY KEY, epoch INTEGER NOT NULL, seen_s REAL);
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
    """One node's notes about claims. Closed by ``close``."""

    def __init__(self, file: sqlite3.Connection) -> None:
        self._file = file
        self._alone = threading.Lock()

    @classmethod
    def open(cls, path: Path | None) -> Self:
        """Open the file, or keep everything in memory.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        file = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False, isolation_level=None)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.executescript(_TABLES)
        return cls(file)

    def close(self) -> None:
        """Close the file."""
        with self._alone:
            self._file.close()

    def keep_ballot(self, ballot: Ballot) -> Ballot:
        """Write a vote down; return the one that stands, which is an earlier one where there is one."""
        row = (ballot.claim, ballot.level, ballot.epoch, int(ballot.opinion), ballot.salt, ballot.error_ppm)
        with self._alone:
            self._file.execute("INSERT OR IGNORE INTO ballots VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, ballot.commitment))
        standing = self.ballot(ballot.claim, ballot.level)
        assert standing is not None
        return standing

    def ballot(self, claim: bytes, level: int) -> Ballot | None:
        """Return the vote of this node at a level; None: it has none."""
        with self._alone:
            found = self._file.execute("SELECT * FROM ballots WHERE claim = ? AND level = ?", (claim, level)).fetchone()
        if found is None:
            return None
        claim, level, epoch, opinion, salt, error_ppm, commitment = found
        return Ballot(claim, level, epoch, Opinion(opinion), salt, error_ppm, commitment)

    def numbers_left(self, epoch: int) -> list[int]:
        """Return the numbers that no claim of an epoch has yet."""
        with self._alone:
            taken = {number for (number,) in self._file.execute("SELECT number FROM claims WHERE epoch = ?", (epoch,))}
        return [number for number in range(MAX_CLAIMS) if number not in taken]

    def keep_claim(self, epoch: int, number: int, chunk: bytes, envelope: bytes) -> bool:
        """Write a claim down; say whether it is the first of its number, and about its chunk."""
        with self._alone:
            row = (epoch, number, chunk, envelope)
            return self._file.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?, ?)", row).rowcount > 0

    def claims_since(self, epoch: int) -> list[bytes]:
        """Return the envelopes of this node's claims from an epoch on."""
        with self._alone:
            rows = self._file.execute("SELECT envelope FROM claims WHERE epoch >= ? ORDER BY epoch, number", (epoch,))
            return [envelope for (envelope,) in rows]

    def note_sightings(self, new: Iterable[Sighting]) -> None:
        """Write down what was seen for the first time."""
        with self._alone:
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR IGNORE INTO sightings VALUES (?, ?, ?)", new)
            self._file.execute("COMMIT")

    def sightings(self) -> list[Sighting]:
        """Return all that was seen."""
        with self._alone:
            return [Sighting(*row) for row in self._file.execute("SELECT * FROM sightings")]

    def forget_before(self, epoch: int) -> None:
        """Drop what is about claims of earlier epochs."""
        with self._alone:
            for table in ("ballots", "claims", "sightings"):
                self._file.execute(f"DELETE FROM {table} WHERE epoch < ?", (epoch,))  # noqa: S608 - names of ours
