"""What the tests of the ledger share: peers, receipts with signatures, and damage."""

from pathlib import Path

from dht.identity import Identity
from dht.records import seal
from dht.work import Receipt
from tests.dht.samples import receipt

OWN, CONSUMER, OTHER = (Identity.ephemeral() for _ in range(3))


def made(provider: Identity = OWN, consumer: Identity = CONSUMER, **changes: object) -> Receipt:
    """A receipt of 64 tokens for every number, through four blocks."""
    seq = int(str(changes.get("seq", 1)))
    amount = int(str(changes.pop("amount", 64 * seq)))
    return receipt(provider, consumer, amount=amount, work=4 * amount, **changes)


def envelope(provider: Identity = OWN, consumer: Identity = CONSUMER, **changes: object) -> bytes:
    """The same, with both signatures."""
    return seal(made(provider, consumer, **changes), provider, consumer).envelope


def spoil(path: Path, what: bytes, by: bytes) -> None:
    """Overwrite bytes in a file on the disk, as a bad block would."""
    data = path.read_bytes()
    at = data.rindex(what)
    path.write_bytes(data[:at] + by + data[at + len(by) :])
