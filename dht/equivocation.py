"""EQUIVOCATION: two receipts of one peer that cannot both be true, which prove by themselves that it lied.

Two receipts of the same provider, consumer, epoch, lane, kind of work and ``seq`` must be the same bytes; a peer that
signed two different ones is out, whatever they say. Anyone may publish the proof, and no one can make one up.
This file does no I/O and reads no clock. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes, verify
from dht.records import Envelope, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import Receipt, Slot


@dataclass(frozen=True, slots=True)
class Equivocation(Record):
    """EQUIVOCATION. Key ``(accused,)``, subkey the sha256 of the body. Nobody signs it: it holds its own proof."""

    KIND: ClassVar[int] = Kind.EQUIVOCATION
    MAX_BYTES: ClassVar[int] = 1024
    IS_REGIONAL: ClassVar[bool] = True

    accused: str  # peer id that signed both
    first: bytes  # body of one receipt, the smaller of both as a byte string
    first_signature: bytes  # of the accused, 64 bytes
    second: bytes  # body of the other
    second_signature: bytes  # of the accused, 64 bytes

    @property
    def authors(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def subkey(self) -> bytes:
        """The sha256 of the body."""
        return sha256(self.to_body()).digest()

    @property
    def slot(self) -> Slot:
        """What both receipts are for."""
        return Receipt.from_body(self.first).slot

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(accused,)``."""
        return (peer_id_to_bytes(self.accused),)

    def expires_s(self, rules: Rules) -> float:
        """As long as evidence lives, from the epoch of the receipts on."""
        return rules.end_of_evidence(self.slot.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch of the receipts has begun."""
        return None if rules.has_begun(self.slot.epoch, now_s) else "from the future"

    def is_proven(self) -> bool:
        """The accused signed both."""
        accused = peer_id_to_bytes(self.accused)
        return verify(accused, Kind.RECEIPT, self.first, self.first_signature) and verify(
            accused, Kind.RECEIPT, self.second, self.second_signature
        )

    def to_body(self) -> bytes:
        """Encode canonically."""
        accused = peer_id_to_bytes(self.accused)
        return encode([accused, self.first, self.first_signature, self.second, self.second_signature])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check that the two receipts contradict each other; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        proof = cls(
            accused=take_peer_id(fields, "accused"),
            first=fields.some_bytes("first", Receipt.MAX_BYTES),
            first_signature=fields.blob("first_signature", 64),
            second=fields.some_bytes("second", Receipt.MAX_BYTES),
            second_signature=fields.blob("second_signature", 64),
        )
        fields.end()
        first, second = Receipt.from_body(proof.first), Receipt.from_body(proof.second)
        if (first.slot, first.seq) != (second.slot, second.seq):
            raise BadRecord("the receipts are not for the same")
        if proof.first >= proof.second:
            raise BadRecord("the receipts are the same, or in the wrong order")
        if proof.accused not in first.authors:
            raise BadRecord("the accused is no author of the receipts")
        return proof


def prove(accused: str, one: Envelope, other: Envelope) -> Equivocation:
    """Make the proof that ``accused`` signed two different receipts.

    Args:
        accused: Peer id of an author of both.
        one: A receipt's envelope, signatures checked.
        other: Another one's.

    Raises:
        ValueError: They do not contradict each other, or are not the accused's.
    """

    def signed(envelope: Envelope) -> tuple[bytes, bytes]:
        return envelope.body, envelope.signatures[Receipt.from_body(envelope.body).authors.index(accused)]

    (first, first_signature), (second, second_signature) = sorted((signed(one), signed(other)))
    proof = Equivocation(accused, first, first_signature, second, second_signature)
    try:
        return Equivocation.from_body(proof.to_body())
    except BadRecord as error:
        raise ValueError(str(error)) from None


def find_equivocations(envelopes: Iterable[Envelope]) -> Iterator[Equivocation]:
    """Yield proofs against every author of two receipts that contradict each other, one proof for a pair of receipts.

    Args:
        envelopes: Of receipts, signatures checked, in any order.
    """
    seen: dict[tuple[Slot, int], Envelope] = {}
    for envelope in envelopes:
        receipt = Receipt.from_body(envelope.body)
        standing = seen.setdefault((receipt.slot, receipt.seq), envelope)
        if standing.body != envelope.body:
            for author in receipt.authors:
                yield prove(author, standing, envelope)
