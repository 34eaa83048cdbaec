"""Decide whether bytes are a receipt that both of its authors have signed.

It asks nothing about the place or the time of the record, which ``dht.validation`` does for what stands on the DHT:
a ledger also holds what has expired there. Pure; two signatures cost 130 us, wherever it is called.
"""

from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes, verify
from dht.records import Envelope, Kind
from dht.work import Receipt


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
    for author, signature in zip(receipt.authors, opened.signatures, strict=True):
        if not verify(peer_id_to_bytes(author), Kind.RECEIPT, opened.body, signature):
            raise BadRecord("a signature is not its author's")
    return receipt
