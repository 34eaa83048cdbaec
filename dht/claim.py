"""CLAIM: one peer accuses another of a chunk of false work, and says where the evidence is.

The claim holds the receipt that the chunk's commitment stands in, as the accused signed it: so whom it accuses, of what
span of which model and when, is what the accused has said itself, and nobody can be accused of work that it never
signed for. Whether the chunk is false is for ``dht.judgement``, and whether the evidence holds for ``node.check``.
This file does no I/O and reads no clock. Pure; a claim costs one signature more than other records.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, NamedTuple, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes, verify
from dht.records import MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH, MAX_ERROR_PPM, Receipt, Slot, WorkKind

MAX_CLAIMS = 3
"""Claims that one accuser can make in one epoch: there are no more places for them."""

CLAIM_EPOCHS = 1
"""A claim is made in the epoch of the receipt, or so many later at most."""

MAX_EVIDENCE_BYTES = 2**26
"""Largest evidence, 64 MiB, as much as one frame of a session: inputs of 8,000 tokens of 8 KiB. What lies farther on
in a longer session cannot be claimed, only audited."""

NO_CHUNKS = frozenset({WorkKind.AUDIT, WorkKind.RELAY})
"""Kinds of work that no hidden states go through."""

MAX_CHUNK = 2**20
"""Bound of segments and of a chunk's number."""


class ClaimedChunk(NamedTuple):
    """What a claim is about, whoever makes it: a peer is convicted of it once."""

    slot: Slot  # of the receipt
    session: bytes
    segment: int
    number: int  # in the segment


@dataclass(frozen=True, slots=True)
class Claim(Record):
    """CLAIM. Key ``(accuser, epoch)``, subkey its number in 1 byte."""

    KIND: ClassVar[int] = Kind.CLAIM
    MAX_BYTES: ClassVar[int] = 704
    IS_REGIONAL: ClassVar[bool] = True

    accuser: str  # peer id, the only author
    epoch: int  # epoch in which it is made: that of the receipt, or the next one
    number: int  # 0 to 2: which of the accuser's claims of the epoch
    receipt: bytes  # body of the receipt whose commitment the chunk stands under, of any seq
    receipt_signature: bytes  # of the accused, who is the receipt's provider, over it; 64 bytes
    session: bytes  # id of the session, 16 bytes
    segment: int  # of the chunk
    index: int  # its number in the segment
    error_ppm: int  # median error that the accuser found, millionths of the span's increment
    evidence: bytes  # sha256 of the evidence, which the accuser hands out, 32 bytes
    evidence_bytes: int  # its size
    t: int  # when it was signed, unix seconds: every deadline counts from here

    @property
    def authors(self) -> tuple[str, ...]:
        """The accuser alone."""
        return (self.accuser,)

    @property
    def hash(self) -> bytes:
        """The sha256 of the body, 32 bytes: by this, contests and verdicts name the claim."""
        return sha256(self.to_body()).digest()

    @property
    def work(self) -> Receipt:
        """The receipt."""
        return Receipt.from_body(self.receipt)

    @property
    def accused(self) -> str:
        """Peer id of who worked."""
        return self.work.provider

    @property
    def chunk(self) -> ClaimedChunk:
        """What it is about."""
        return ClaimedChunk(self.work.slot, self.session, self.segment, self.index)

    @property
    def subkey(self) -> bytes:
        """The number in 1 byte."""
        return bytes([self.number])

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(accuser, epoch)``: who floods a key with claims floods its own."""
        return (peer_id_to_bytes(self.accuser), self.epoch)

    def expires_s(self, rules: Rules) -> float:
        """As long as evidence lives."""
        return rules.end_of_evidence(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun, and the claim was signed in it."""
        if not rules.has_begun(self.epoch, now_s):
            return "from the future"
        return None if rules.is_within(self.epoch, self.t) else "outside its epoch"

    def is_proven(self) -> bool:
        """The accused signed the receipt."""
        return verify(peer_id_to_bytes(self.accused), Kind.RECEIPT, self.receipt, self.receipt_signature)

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.accuser),
                self.epoch,
                self.number,
                self.receipt,
                self.receipt_signature,
                self.session,
                self.segment,
                self.index,
                self.error_ppm,
                self.evidence,
                self.evidence_bytes,
                self.t,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check, the receipt inside, too; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        claim = cls(
            accuser=take_peer_id(fields, "accuser"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            number=fields.uint("number", MAX_CLAIMS - 1),
            receipt=fields.some_bytes("receipt", Receipt.MAX_BYTES),
            receipt_signature=fields.blob("receipt_signature", 64),
            session=fields.blob("session", 16),
            segment=fields.uint("segment", MAX_CHUNK),
            index=fields.uint("index", MAX_CHUNK),
            error_ppm=fields.uint("error_ppm", MAX_ERROR_PPM),
            evidence=fields.blob("evidence", 32),
            evidence_bytes=fields.uint("evidence_bytes", MAX_EVIDENCE_BYTES, min_value=1),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        receipt = Receipt.from_body(claim.receipt)
        if receipt.provider == claim.accuser:
            raise BadRecord("nobody accuses himself")
        if receipt.work_kind in NO_CHUNKS or not receipt.amount:
            raise BadRecord("there are no chunks in that work")
        if not receipt.epoch <= claim.epoch <= receipt.epoch + CLAIM_EPOCHS:
            raise BadRecord("the receipt is of another time")
        return claim
