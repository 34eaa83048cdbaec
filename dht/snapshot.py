"""SNAPSHOT: what one peer has read of a window of receipts, as one digest, so that others need not read it all.

The receipts themselves are had from the publisher, over a stream; the digest says whether they are the ones that it
vouches for. The digest does not depend on the order in which they were read. This file does no I/O. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_COUNT, MAX_EPOCH

NO_SCORES = bytes(32)
"""Digest of scores where none were computed."""


def digest_of(envelopes: Iterable[bytes]) -> bytes:
    """Hash a set of envelopes, each counted once, in whatever order: 32 bytes."""
    hashes = sorted({sha256(envelope).digest() for envelope in envelopes})
    return sha256(b"".join(hashes)).digest()


@dataclass(frozen=True, slots=True)
class Snapshot(Record):
    """SNAPSHOT. Key ``(publisher,)``, subkey the epoch in 4 bytes."""

    KIND: ClassVar[int] = Kind.SNAPSHOT
    MAX_BYTES: ClassVar[int] = 256
    IS_REGIONAL: ClassVar[bool] = True

    publisher: str  # peer id, the only author
    first_epoch: int  # oldest epoch whose receipts are in it
    epoch: int  # newest one; it has ended when the snapshot is made
    num_receipts: int  # how many it holds
    digest: bytes  # ``digest_of`` their envelopes, 32 bytes
    scores: bytes  # digest of the scores that follow from them, 32 bytes; zeros where none were computed

    @property
    def authors(self) -> tuple[str, ...]:
        """The publisher alone."""
        return (self.publisher,)

    @property
    def subkey(self) -> bytes:
        """The epoch in 4 bytes."""
        return self.epoch.to_bytes(4, "big")

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(publisher,)``."""
        return (peer_id_to_bytes(self.publisher),)

    def expires_s(self, rules: Rules) -> float:
        """The end of the epoch's window."""
        return rules.end_of_window(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """What it sums up has ended, and is not more than stands on the DHT at once."""
        if not rules.has_begun(self.epoch + 1, now_s):
            return "from the future"
        return "longer than a window" if self.epoch - self.first_epoch >= rules.window_epochs else None

    def to_body(self) -> bytes:
        """Encode canonically."""
        publisher = peer_id_to_bytes(self.publisher)
        return encode([publisher, self.first_epoch, self.epoch, self.num_receipts, self.digest, self.scores])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        snapshot = cls(
            publisher=take_peer_id(fields, "publisher"),
            first_epoch=fields.uint("first_epoch", MAX_EPOCH - 1),
            epoch=fields.uint("epoch", MAX_EPOCH - 1),
            num_receipts=fields.uint("num_receipts", MAX_COUNT),
            digest=fields.blob("digest", 32),
            scores=fields.blob("scores", 32),
        )
        fields.end()
        if snapshot.first_epoch > snapshot.epoch:
            raise BadRecord("it ends before it begins")
        return snapshot
