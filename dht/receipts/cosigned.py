"""Decide whether bytes are a receipt that both of its authors have signed.

It asks nothing about the place or the time of the record, which ``dht.validation`` does for what stands on the DHT:
a ledger also holds what has expired there. Pure; two signatures cost 130 us, wherever it is called.
"""

from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.receipts.signatures import SignatureJob, are_signed
from dht.records import Envelope, Kind, Record
from dht.work import Receipt


def job_of(opened: Envelope, record: Record) -> SignatureJob:
    """Say what is to be checked of an envelope and the record that it holds."""
    return opened.kind, opened.body, tuple(map(peer_id_to_bytes, record.authors)), opened.signatures


def check_receipt(envelope: bytes) -> Receipt:
    """Open an envelope and check both signatures.

    Args:
        envelope: Of a receipt, from a disk or a peer.

    Raises:
        BadRecord: No receipt, malformed, or not signed by provider and consumer.
    """
    if len(envelope) > Receipt.MAX_BYTES:
        raise BadRecord("oversize")
    opened = Envelope.from_bytes(envelope)
    if opened.kind != Kind.RECEIPT:
        raise BadRecord("no receipt")
    receipt = Receipt.from_body(opened.body)
    if len(opened.signatures) != len(receipt.authors):
        raise BadRecord("not signed by both")
    if are_signed([job_of(opened, receipt)]) != [True]:
        raise BadRecord("a signature is not its author's")
    return receipt
