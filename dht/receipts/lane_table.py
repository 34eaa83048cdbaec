"""Keep in a ledger's tables the lanes that a consumer may take again: their last sessions ended with all signed.

A lane is in the table only while no process uses it. One that was in use when its process was killed is nobody's, and
never taken again; nor is one of a file that may be older than what was signed last (``continuity``). Only
``dht.receipts.ledger`` calls this, inside its transactions.
"""

import sqlite3
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dht.codec import encode
from dht.identity import peer_id_to_bytes, peer_id_to_str

MAX_FREE_LANES = 64
"""Lanes of one own peer id that are remembered, those put back last."""


@dataclass(frozen=True, slots=True)
class FreeLane:
    """A lane in which no session is open."""

    provider: str  # peer id
    manifest: bytes  # identity of the model, 32 bytes
    start: int  # first block
    end: int  # one past the last block
    profile: bytes  # how the span is held and its hidden states are sent, 32 bytes
    number: int


def take_lanes(db: sqlite3.Connection, own: str, is_continued: Callable[[bytes, int], bool]) -> list[FreeLane]:
    """Take all free lanes out of the table; one whose row has been changed by something else than us is dropped.

    Args:
        db: The ledger's database.
        own: Peer id of the consumer.
        is_continued: Whether this file is as it was left in a start of the machine at a unix second.
    """
    key = (peer_id_to_bytes(own),)
    columns = "provider, manifest, first_block, end_block, profile, lane, boot, t, checksum"
    rows = db.execute(f"SELECT {columns} FROM free_lanes WHERE own = ? ORDER BY id", key).fetchall()  # noqa: S608
    db.execute("DELETE FROM free_lanes WHERE own = ?", key)
    sound = [row for *row, checksum in rows if _sum(key[0], row) == checksum]
    return [FreeLane(peer_id_to_str(provider), *terms) for provider, *terms, boot, t in sound if is_continued(boot, t)]


def put_lanes(db: sqlite3.Connection, own: str, lanes: Sequence[FreeLane], boot: bytes, t: int) -> None:
    """Put lanes into the table; forget the oldest where there are too many.

    All that was signed there stands among the receipts, so numbers that were only written ahead are free again.

    Args:
        db: The ledger's database.
        own: Peer id of the consumer.
        lanes: In which everything is signed for.
        boot: Names this start of the machine.
        t: Unix second.
    """
    owner = peer_id_to_bytes(own)
    for lane in lanes[-MAX_FREE_LANES:]:
        db.execute(
            "DELETE FROM reservations WHERE own = ? AND provider = ? AND consumer = ? AND lane = ?",
            (owner, peer_id_to_bytes(lane.provider), owner, lane.number),
        )
        provider = peer_id_to_bytes(lane.provider)
        row = [provider, lane.manifest, lane.start, lane.end, lane.profile, lane.number, boot, t]
        db.execute(
            "INSERT INTO free_lanes VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (owner, *row, _sum(owner, row))
        )
    db.execute(
        "DELETE FROM free_lanes WHERE own = ? AND id <= (SELECT id FROM free_lanes WHERE own = ?"
        " ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (owner, owner, MAX_FREE_LANES),
    )


def _sum(owner: bytes, row: Sequence[object]) -> int | None:
    try:
        return zlib.crc32(encode([owner, *row]))  # type: ignore[list-item]
    except (TypeError, ValueError):
        return None
