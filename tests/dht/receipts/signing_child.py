"""A process that reserves, signs and appends as fast as it can, until somebody kills it.

Usage: signing_child.py LEDGER SEED. Each number that it has signed goes to stdout, with the digest of the body, before
the receipt is appended: what was printed is what a peer could have seen.
"""

import hashlib
import os
import sys
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.records import seal
from dht.rules import DEFAULT_RULES
from dht.work import Receipt, WorkKind

PROVIDER, CONSUMER = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32), None) for n in (1, 2))


EPOCH = 80_000


def receipt(seq: int, commitment: bytes) -> Receipt:
    """Make one of 64 tokens; not by the samples of the other tests, whose imports take seconds."""
    t = DEFAULT_RULES.start_of(EPOCH)
    return Receipt(
        PROVIDER.peer_id, CONSUMER.peer_id, EPOCH, 7, WorkKind.DECODE, seq, bytes(32), 0, 4, bytes(32), 1, 64, 256, 0,
        0, commitment, t, t,
    )  # fmt: skip


def main() -> None:
    with Ledger.open(Path(sys.argv[1])) as ledger:
        for turn in count():
            commitment = hashlib.sha256(f"{sys.argv[2]} {turn}".encode()).digest()
            seq = ledger.reserve(PROVIDER.peer_id, receipt(1, commitment).slot)
            signed = seal(receipt(seq, commitment), PROVIDER, CONSUMER)
            os.write(1, f"{seq} {hashlib.sha256(signed.record.to_body()).hexdigest()}\n".encode())
            ledger.append(PROVIDER.peer_id, signed.envelope)


if __name__ == "__main__":
    main()
