"""Read what can still be read of a damaged ledger.

Rows are read from both ends until the damage stops it. A receipt proves itself; the rest is notes for people. It may
block for as long as the file takes to read.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dht.identity import peer_id_to_str
from dht.receipts.reservation_table import UnsignedEnd, model_names, seq_floor, unsigned_ends


@dataclass(frozen=True, slots=True)
class Salvage:
    """What a damaged ledger still held; nothing of it has been checked."""

    envelopes: tuple[tuple[str, bytes], ...] = ()  # own peer id and receipt
    ends: tuple[tuple[str, UnsignedEnd], ...] = ()  # own peer id and note
    models: dict[bytes, str] = field(default_factory=dict)  # names by manifest
    floor: int = 0  # below which numbers were not to be used


def salvage(path: Path) -> Salvage:
    """Read the file at ``path``, which no process has open; never raises for what it holds."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
    except sqlite3.Error:
        return Salvage()
    with contextlib.closing(connection):
        ends: list[tuple[str, UnsignedEnd]] = []
        models: dict[bytes, str] = {}
        floor = 0
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
            floor = seq_floor(connection)
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
            models = model_names(connection)
        with contextlib.suppress(sqlite3.Error, ValueError, TypeError):
            for (own,) in connection.execute("SELECT DISTINCT own FROM unsigned_ends").fetchall():
                peer_id = peer_id_to_str(bytes(own))
                ends.extend((peer_id, end) for end in unsigned_ends(connection, peer_id, 0))
        return Salvage(tuple(_envelopes(connection)), tuple(ends), models, floor)


def _envelopes(db: sqlite3.Connection) -> list[tuple[str, bytes]]:
    own = _peers(db)
    rows = dict(_rows(db, "ASC"))
    rows.update(_rows(db, "DESC"))
    return [(own[number], envelope) for _, (number, envelope) in sorted(rows.items()) if number in own]


def _peers(db: sqlite3.Connection) -> dict[int, str]:
    peers = {}
    with contextlib.suppress(sqlite3.Error):
        for number, peer in db.execute("SELECT id, peer FROM peers NOT INDEXED"):
            with contextlib.suppress(ValueError, TypeError):
                peers[number] = peer_id_to_str(bytes(peer))
    return peers


def _rows(db: sqlite3.Connection, order: str) -> Iterator[tuple[int, tuple[int, bytes]]]:
    with contextlib.suppress(sqlite3.Error):
        for row, own, envelope in db.execute(f"SELECT id, own, envelope FROM receipts NOT INDEXED ORDER BY id {order}"):  # noqa: S608
            if isinstance(envelope, bytes):
                yield row, (own, envelope)
