"""Keep in a ledger's tables how often others have not signed as they should, less what they mended.

A provider counts so what consumers leave unsigned, and a consumer which providers ask wrongly, or not, for signatures.

What follows from it is decided elsewhere. Only ``dht.receipts.ledger`` calls this, inside its transactions.
"""

import sqlite3

from dht.identity import peer_id_to_bytes, peer_id_to_str

MAX_STANDINGS = 65_536
"""Peers of one own peer id that are remembered so; who was met longest ago is forgotten first."""
MAX_UNSIGNED = 16
"""More count as so many: who signs again is not held to account for ever."""

_OF_PEER = "own = ? AND peer = ?"


def num_unsigned(db: sqlite3.Connection, own: str, peer: str) -> int:
    """Return how many ends of sessions without signatures stand against a peer."""
    return standing(db, own, peer)[0]


def standing(db: sqlite3.Connection, own: str, peer: str) -> tuple[int, int]:
    """Return the same, and the unix second in which it changed last; 0, 0 where nothing stands against a peer."""
    row = db.execute(f"SELECT num_unsigned, t FROM standings WHERE {_OF_PEER}", _key(own, peer)).fetchone()  # noqa: S608
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def since(db: sqlite3.Connection, own: str, t: int) -> dict[str, int]:
    """Return the peers whose standing has changed since the unix second ``t``, and when."""
    rows = db.execute("SELECT peer, t FROM standings WHERE own = ? AND t >= ?", (peer_id_to_bytes(own), t))
    return {peer_id_to_str(peer): int(at) for peer, at in rows}


def write_unsigned(db: sqlite3.Connection, own: str, peer: str, num: int, t: int) -> None:
    """Note how many stand against a peer since the unix second ``t``; forget the oldest where there are too many."""
    key = _key(own, peer)
    if num <= 0:
        db.execute(f"DELETE FROM standings WHERE {_OF_PEER}", key)  # noqa: S608 - constants
        return
    db.execute("INSERT OR REPLACE INTO standings VALUES (?, ?, ?, ?)", (*key, min(num, MAX_UNSIGNED), t))
    db.execute(
        "DELETE FROM standings WHERE own = ? AND peer IN"
        " (SELECT peer FROM standings WHERE own = ? ORDER BY t DESC, peer LIMIT -1 OFFSET ?)",
        (key[0], key[0], MAX_STANDINGS),
    )


def _key(own: str, peer: str) -> tuple[bytes, bytes]:
    return peer_id_to_bytes(own), peer_id_to_bytes(peer)
