"""Keep in a ledger's tables which sequence numbers may have been signed, and what is known of peers and models.

Only ``dht.receipts.ledger`` calls this, inside its transactions.
"""

import sqlite3
import zlib
from dataclasses import dataclass

from dht.codec import encode
from dht.identity import peer_id_to_bytes, peer_id_to_str
from dht.receipts.receipt_table import highest_seq
from dht.receipts.seq_blocks import SlotOf, floor_after
from dht.work import Slot

_COLUMNS = "own, provider, consumer, epoch, lane, work_kind"
_OF_SLOT = "own = ? AND provider = ? AND consumer = ? AND epoch = ? AND lane = ? AND work_kind = ?"

_IS_MERGED = "own = x'' AND provider = x'' AND consumer = x'' AND lane = 0 AND work_kind = 0"
"""The row that stands for all reservations of its epoch."""

MAX_UNSIGNED_ENDS = 10_000
"""Unsigned ends of one own peer id that are kept, the newest ones: peers decide how many there are."""


@dataclass(frozen=True, slots=True)
class UnsignedEnd:
    """A session that ended with work that one side did not sign for."""

    peer: str  # peer id of who did not sign
    peer_provides: bool  # True: the peer was to sign work that it did; False: work that was done for it
    manifest: bytes  # identity of the model, 32 bytes
    amount: int  # tokens without a signature
    t: int  # when the session ended, unix seconds


def reserved(db: sqlite3.Connection, own: str, slot: Slot) -> int:
    """Return the highest number that may have been signed in a slot; 0: none."""
    row = db.execute(f"SELECT up_to FROM reservations WHERE {_OF_SLOT}", _key(own, slot)).fetchone()  # noqa: S608
    # The consumer draws lanes anew when it starts, so only who works must keep clear of what a lost file held.
    floor = seq_floor(db) if own == slot.provider else 0
    return max(int(row[0]) if row is not None else 0, highest_seq(db, own, slot), floor, _merged(db, slot.epoch))


def write_reserved(db: sqlite3.Connection, slot_of: SlotOf, up_to: int) -> None:
    """Note that numbers up to one may be signed."""
    key = _key(*slot_of)
    db.execute("INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, up_to, _sum(key, up_to)))


def seq_floor(db: sqlite3.Connection) -> int:
    """Return the number that no new one may be at or below."""
    (floor,) = db.execute("SELECT max(floor) FROM seq_floor").fetchone()
    return int(floor or 0)


def raise_floor(db: sqlite3.Connection, floor: int) -> None:
    """Lift the floor to at least ``floor``."""
    if floor > seq_floor(db):
        db.execute("UPDATE seq_floor SET floor = ?", (floor,))


def mend_reservations(db: sqlite3.Connection) -> int:
    """Drop reservations that have been changed by something else than us and keep clear of them; returns how many."""
    rows = db.execute(f"SELECT {_COLUMNS}, up_to, checksum FROM reservations")  # noqa: S608 - constants
    damaged = [tuple(key) for *key, up_to, checksum in rows if _sum(tuple(key), up_to) != checksum]
    for key in damaged:
        db.execute(f"DELETE FROM reservations WHERE {_OF_SLOT}", key)  # noqa: S608 - constants
    if damaged:
        raise_floor(db, floor_after(seq_floor(db), 1))
    return len(damaged)


def merge_reservations(db: sqlite3.Connection, before_epoch: int) -> None:
    """Keep of each earlier epoch one number that is not below any that was reserved there, for all its slots."""
    kept = f"epoch < ? AND NOT ({_IS_MERGED})"
    highest = db.execute(f"SELECT epoch, max(up_to) FROM reservations WHERE {kept} GROUP BY epoch", (before_epoch,))  # noqa: S608
    for epoch, up_to in highest.fetchall():
        key = (b"", b"", b"", epoch, 0, 0)
        up_to = max(up_to, _merged(db, epoch))
        db.execute(
            "INSERT OR REPLACE INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*key, up_to, _sum(key, up_to))
        )
    db.execute(f"DELETE FROM reservations WHERE {kept}", (before_epoch,))  # noqa: S608 - constants


def _merged(db: sqlite3.Connection, epoch: int) -> int:
    """Return the number that stands for all merged reservations of an epoch; 0 where none were merged."""
    row = db.execute(f"SELECT up_to FROM reservations WHERE epoch = ? AND {_IS_MERGED}", (epoch,)).fetchone()  # noqa: S608
    return int(row[0]) if row is not None else 0


def add_unsigned_end(db: sqlite3.Connection, own: str, end: UnsignedEnd) -> None:
    """Note that a peer did not sign, and forget the oldest such note where there are too many."""
    peers = (peer_id_to_bytes(own), peer_id_to_bytes(end.peer))
    db.execute(
        "INSERT INTO unsigned_ends (own, peer, peer_provides, manifest, amount, t) VALUES (?, ?, ?, ?, ?, ?)",
        (*peers, end.peer_provides, end.manifest, end.amount, end.t),
    )
    db.execute(
        "DELETE FROM unsigned_ends WHERE own = ? AND id <= (SELECT id FROM unsigned_ends WHERE own = ?"
        " ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (peers[0], peers[0], MAX_UNSIGNED_ENDS),
    )


def unsigned_ends(db: sqlite3.Connection, own: str, since_s: int) -> list[UnsignedEnd]:
    """List the unsigned ends of one own peer id from ``since_s`` on, oldest first."""
    rows = db.execute(
        "SELECT peer, peer_provides, manifest, amount, t FROM unsigned_ends WHERE own = ? AND t >= ? ORDER BY t, id",
        (peer_id_to_bytes(own), since_s),
    )
    return [
        UnsignedEnd(peer_id_to_str(bytes(peer)), bool(provides), bytes(manifest), amount, t)
        for peer, provides, manifest, amount, t in rows
    ]


def add_model_name(db: sqlite3.Connection, manifest: bytes, name: str) -> None:
    """Remember the name under which a model was met last."""
    db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (manifest, name))


def model_names(db: sqlite3.Connection) -> dict[bytes, str]:
    """Return the names of models by their manifests."""
    return {bytes(manifest): str(name) for manifest, name in db.execute("SELECT manifest, name FROM models")}


def _key(own: str, slot: Slot) -> tuple[bytes | int, ...]:
    peers = (peer_id_to_bytes(peer) for peer in (own, slot.provider, slot.consumer))
    return (*peers, slot.epoch, slot.lane, int(slot.work_kind))


def _sum(key: tuple[bytes | int, ...], up_to: object) -> int | None:
    """Return the checksum of a reservation; None for what is none."""
    try:
        return zlib.crc32(encode([*key, up_to]))  # type: ignore[list-item]
    except (TypeError, ValueError):
        return None
