"""Decide which receipts a ledger takes, and whether a row still is the receipt that was taken.

Only ``dht.receipts.ledger`` and its file's repair call this, inside their transactions.
"""

import sqlite3
from dataclasses import dataclass

from dht.errors import BadRecord, Contradiction, DhtError
from dht.receipts import receipt_table
from dht.receipts.cosigned import check_receipt
from dht.receipts.receipt_table import Row, columns_of
from dht.work import Receipt


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that was set aside."""

    row: int  # its number in the file
    reason: str  # what is wrong with it, in a few words


@dataclass(frozen=True, slots=True)
class Repaired:
    """What came of receipts that were had again from the DHT."""

    added: int  # receipts that the ledger had not
    known: int  # receipts that it had
    contradictions: tuple[bytes, ...]  # envelopes that another one with the same number stands against
    refused: int  # what was no receipt of ours, or not signed by both


REBUILT = "it was made again from its envelope"
"""Why a row is set aside in whose place another stands that holds the same receipt."""


def check_own(own: str, envelope: bytes) -> Receipt:
    """Open a receipt that ``own`` and another peer have signed; raises ``BadRecord``."""
    receipt = check_receipt(envelope)
    if own not in receipt.authors:
        raise BadRecord("a receipt of others")
    return receipt


def complaint(row: Row) -> str | None:
    """Name what is wrong with a row, or None."""
    try:
        receipt = check_own(row.own, row.envelope)
    except BadRecord as error:
        return str(error)
    found = (row.provider, row.consumer, row.columns)
    if found != (receipt.provider, receipt.consumer, columns_of(receipt)):
        return "the row and its envelope differ"
    return None


def insert(db: sqlite3.Connection, own: str, receipt: Receipt, envelope: bytes, now_s: float) -> bool | DhtError:
    """Add a checked receipt unless it is held; a damaged one with its number is set aside.

    Returns:
        Whether it was added; a ``Contradiction`` where a sound one with the same number says something else.
    """
    while (held := receipt_table.held_with(db, own, receipt.slot, receipt.seq)) is not None:
        reason = complaint(held)
        if reason is not None:
            put_aside(db, held, reason, now_s)
        elif check_receipt(held.envelope) == receipt:
            return False
        else:
            other = receipt.consumer if own == receipt.provider else receipt.provider
            return Contradiction(f"Another receipt {receipt.seq} of lane {receipt.lane} with {other} is held.")
    receipt_table.insert(db, own, receipt, envelope)
    return True


def put_aside(db: sqlite3.Connection, row: Row, reason: str, now_s: float) -> bool:
    """Let a damaged row count no longer, and add anew the receipt in its envelope if its signatures are good.

    Returns:
        Whether that receipt counts now, so that nothing is lost.
    """
    receipt_table.set_aside(db, row.row_id, reason, now_s)
    own = _owner(db, row)
    if own is None or isinstance(insert(db, own, check_own(own, row.envelope), row.envelope, now_s), DhtError):
        return False
    receipt_table.set_aside(db, row.row_id, REBUILT, now_s)
    return True


def _owner(db: sqlite3.Connection, row: Row) -> str | None:
    """Say in whose ledger a damaged row belongs; None where its envelope is damaged, or nothing tells."""
    try:
        authors = check_receipt(row.envelope).authors
    except BadRecord:
        return None
    if row.own in authors:
        return row.own
    candidates = [peer for peer in receipt_table.owners(db) if peer in authors]
    return candidates[0] if len(candidates) == 1 else None
