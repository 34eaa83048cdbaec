"""Put receipts into a ledger's tables and find them there: one function per question, on an open connection.

Only ``dht.receipts.ledger`` calls this, inside its transactions; it decides about signatures, this file does not.
"""

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from dht.identity import peer_id_to_bytes, peer_id_to_str
from dht.work import Receipt, Slot, WorkKind

PAGE = 1024
"""Rows that are read at once."""

_PEERS = ("own", "provider", "consumer")
_OF_SLOT = "own = ? AND provider = ? AND consumer = ? AND epoch = ? AND lane = ? AND work_kind = ?"
_SOUND = "id NOT IN (SELECT receipt FROM set_aside)"


class Row(NamedTuple):
    """One receipt as it is held."""

    row_id: int
    own: str  # peer id under which it is held; empty where the row has lost it, also in the next two
    provider: str  # peer id
    consumer: str  # peer id
    columns: tuple[int, ...]  # epoch, lane, work_kind, seq, t_last, amount: what the row says beside the envelope
    envelope: bytes


def peer_number(db: sqlite3.Connection, peer_id: str) -> int:
    """Return the number of a peer in this file, a new one where it has none."""
    peer = peer_id_to_bytes(peer_id)
    held = db.execute("SELECT id FROM peers WHERE peer = ?", (peer,)).fetchone()
    if held is None:
        return int(db.execute("INSERT INTO peers (peer) VALUES (?)", (peer,)).lastrowid or 0)
    return int(held[0])


def columns_of(receipt: Receipt) -> tuple[int, ...]:
    """Say what a row holds of a receipt beside its envelope and its peers."""
    return (receipt.epoch, receipt.lane, int(receipt.work_kind), receipt.seq, receipt.t_last, receipt.amount)


def insert(db: sqlite3.Connection, own: str, receipt: Receipt, envelope: bytes) -> None:
    """Add a receipt."""
    peers = [peer_number(db, peer) for peer in (own, receipt.provider, receipt.consumer)]
    db.execute(
        "INSERT INTO receipts (own, provider, consumer, epoch, lane, work_kind, seq, t_last, amount, envelope)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*peers, *columns_of(receipt), envelope),
    )


def held_with(db: sqlite3.Connection, own: str, slot: Slot, seq: int) -> Row | None:
    """Return the receipt that is held for a slot and number, or None."""
    return next(_rows(db, f"{_OF_SLOT} AND seq = ? AND {_SOUND} LIMIT 1", (*_slot(db, own, slot), seq)), None)


def row(db: sqlite3.Connection, row_id: int) -> Row | None:
    """Return the row with a number, sound or not."""
    return next(_rows(db, "id = ?", (row_id,)), None)


def highest_seq(db: sqlite3.Connection, own: str, slot: Slot) -> int:
    """Return the highest number among the receipts of a slot, sound or not; 0 where there is none."""
    (seq,) = db.execute(
        f"SELECT max(seq) FROM receipts WHERE {_OF_SLOT}",  # noqa: S608 - constants
        _slot(db, own, slot),
    ).fetchone()
    return int(seq or 0)


def newest_of(db: sqlite3.Connection, own: str, slot: Slot) -> Row | None:
    """Return the newest receipt of a slot."""
    of_slot = f"{_OF_SLOT} AND {_SOUND} ORDER BY seq DESC LIMIT 1"
    return next(_rows(db, of_slot, _slot(db, own, slot)), None)


def newest_epoch(db: sqlite3.Connection) -> int:
    """Return the latest epoch of any receipt; 0 where there is none."""
    (epoch,) = db.execute("SELECT max(epoch) FROM receipts").fetchone()
    return int(epoch or 0)


def crowded_slots(db: sqlite3.Connection, before_epoch: int, limit: int) -> list[tuple[str, Slot]]:
    """List some slots of earlier epochs that hold more than one sound receipt, each with whose ledger it is in."""
    peers = ", ".join(f"(SELECT peer FROM peers WHERE peers.id = {column})" for column in _PEERS)  # noqa: S608 - constants
    found = db.execute(
        f"SELECT {peers}, epoch, lane, work_kind FROM receipts WHERE epoch < ? AND {_SOUND}"  # noqa: S608 - constants
        " GROUP BY own, provider, consumer, epoch, lane, work_kind HAVING count(*) > 1 LIMIT ?",
        (before_epoch, limit),
    )
    slots = [(_peer(own), _peer(provider), _peer(consumer), *rest) for own, provider, consumer, *rest in found]
    # Damaged rows may name nobody, or no kind of work; ``verify`` sets them aside.
    return [
        (own, Slot(provider, consumer, epoch, lane, WorkKind(kind)))
        for own, provider, consumer, epoch, lane, kind in slots
        if own and provider and consumer and kind in set(WorkKind)
    ]


def drop_older(db: sqlite3.Connection, own: str, slot: Slot, seq: int) -> int:
    """Drop the sound receipts of a slot below a number, whose receipt is held; returns how many."""
    return db.execute(
        f"DELETE FROM receipts WHERE {_OF_SLOT} AND seq < ? AND {_SOUND}",  # noqa: S608 - constants
        (*_slot(db, own, slot), seq),
    ).rowcount


def newest(db: sqlite3.Connection, own: str, since_s: int, before_s: int, since_epoch: int = 0) -> list[Row]:
    """Return the newest receipt of every slot among those whose work ended at or after one second and before another.

    Args:
        db: An open ledger.
        own: Peer id.
        since_s: Unix seconds.
        before_s: Unix seconds.
        since_epoch: Earlier epochs are left out.
    """
    newest_of_slots = (
        "SELECT id, max(seq) FROM receipts WHERE own = ? AND t_last >= ? AND t_last < ? AND epoch >= ?"  # noqa: S608 - constants
        f" AND {_SOUND} GROUP BY provider, consumer, epoch, lane, work_kind"
    )
    numbers = (_number(db, own), since_s, before_s, since_epoch)
    return list(_rows(db, f"id IN (SELECT id FROM ({newest_of_slots}))", numbers))  # noqa: S608 - constants


def page(db: sqlite3.Connection, after: int) -> list[Row]:
    """List the next rows behind a number that are not set aside, in the order of their adding; few enough to hold."""
    return list(_rows(db, f"id > ? AND {_SOUND} ORDER BY id LIMIT ?", (after, PAGE)))


def total_amounts(db: sqlite3.Connection, provider: str, consumer: str) -> dict[WorkKind, int]:
    """Add up what a consumer has signed for with a provider that keeps this ledger, over all slots, by kind of work."""
    inner = (
        f"SELECT work_kind, max(seq), amount FROM receipts WHERE own = ? AND provider = own AND consumer = ?"  # noqa: S608 - constants
        f" AND {_SOUND} GROUP BY epoch, lane, work_kind"
    )
    numbers = (_number(db, provider), _number(db, consumer))
    rows = db.execute(f"SELECT work_kind, sum(amount) FROM ({inner}) GROUP BY work_kind", numbers)  # noqa: S608 - constants
    return {WorkKind(kind): int(amount) for kind, amount in rows}


def owners(db: sqlite3.Connection) -> list[str]:
    """List the peer ids under which anything is held."""
    found = db.execute(
        "SELECT peer FROM peers WHERE id IN (SELECT own FROM receipts) UNION SELECT own FROM unsigned_ends"
    )
    return sorted(peer_id_to_str(bytes(peer)) for (peer,) in found)


def set_aside(db: sqlite3.Connection, row_id: int, reason: str, now_s: float) -> None:
    """Let a row count no longer; the last reason stands."""
    db.execute("INSERT OR REPLACE INTO set_aside VALUES (?, ?, ?)", (row_id, reason, int(now_s)))


def those_set_aside(db: sqlite3.Connection) -> list[tuple[int, str]]:
    """List the numbers of rows that do not count, with the reasons."""
    return [(row, str(reason)) for row, reason in db.execute("SELECT receipt, reason FROM set_aside ORDER BY receipt")]


def those_lost(db: sqlite3.Connection, reason: str) -> list[tuple[int, str]]:
    """List the numbers of rows that do not count and that no sound one stands for, with the reasons.

    Args:
        db: An open ledger.
        reason: Rows that were set aside for it are left out.
    """
    return [
        (row, str(why))
        for row, why in db.execute(
            "SELECT receipt, reason FROM set_aside LEFT JOIN receipts AS lost ON lost.id = receipt"
            " WHERE reason <> ? AND NOT EXISTS (SELECT 1 FROM receipts AS held WHERE held.own = lost.own"
            " AND held.provider = lost.provider AND held.consumer = lost.consumer AND held.epoch = lost.epoch"
            " AND held.lane = lost.lane AND held.work_kind = lost.work_kind AND held.seq >= lost.seq"
            " AND held.id NOT IN (SELECT receipt FROM set_aside)) ORDER BY receipt",
            (reason,),
        )
    ]


def _rows(db: sqlite3.Connection, where: str, values: tuple[int, ...]) -> Iterator[Row]:
    peers = ", ".join(f"(SELECT peer FROM peers WHERE peers.id = {column})" for column in _PEERS)  # noqa: S608 - constants
    found = db.execute(
        f"SELECT id, {peers}, epoch, lane, work_kind, seq, t_last, amount, envelope FROM receipts WHERE {where}",  # noqa: S608 - constants
        values,
    )
    for row_id, own, provider, consumer, *columns, envelope in found:
        yield Row(row_id, _peer(own), _peer(provider), _peer(consumer), tuple(columns), bytes(envelope))


def _peer(peer: object) -> str:
    """Read a peer id that a damaged row may have lost."""
    try:
        return peer_id_to_str(bytes(peer)) if isinstance(peer, bytes) else ""
    except ValueError:
        return ""


def _number(db: sqlite3.Connection, peer_id: str) -> int:
    """Return the number of a peer, or one that no peer has."""
    held = db.execute("SELECT id FROM peers WHERE peer = ?", (peer_id_to_bytes(peer_id),)).fetchone()
    return -1 if held is None else int(held[0])


def _slot(db: sqlite3.Connection, own: str, slot: Slot) -> tuple[int, ...]:
    peers = (_number(db, peer) for peer in (own, slot.provider, slot.consumer))
    return (*peers, slot.epoch, slot.lane, int(slot.work_kind))
