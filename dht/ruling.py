"""RULING: what one anchor has found final about one claim, for those who cannot work it out any more, or never could.

One says nothing: what more than half of a reader's anchors have signed alike stands (``dht.judgement.signed_rulings``).
A ruling holds no time of its own, so an anchor that signs the same again signs the same bytes; two that differ have
places of their own, and whoever reads one reads the other. This file does no I/O and reads no clock. Pure.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import ClassVar, Self

from dht.claim import CLAIM_EPOCHS, MAX_CHUNK, MAX_CLAIMS, NO_CHUNKS, ClaimedChunk
from dht.codec import Fields, decode, encode
from dht.contest import is_timely
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_FUTURE_S, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH, MAX_LANE, Slot, WorkKind

TERM_EPOCHS = 16
"""Epochs whose rulings stand under one key: all that count are 23 keys of an anchor."""


class Outcome(IntEnum):
    """What has become of a claim."""

    UPHELD = 1  # the work was false
    REJECTED = 2  # the claim was false
    UNRESOLVED = 3  # nobody could tell
    IGNORED = 4  # it came too late to be denied


class Backer(IntEnum):
    """Who has forced the last level with its bond."""

    NOBODY = 0
    ACCUSER = 1
    ACCUSED = 2


def term_of(epoch: int) -> int:
    """Return which key holds the rulings on claims of an epoch."""
    return epoch // TERM_EPOCHS


@dataclass(frozen=True, slots=True)
class RulingRecord(Record):
    """RULING. Key ``(anchor, epoch // 16)``, subkey the sha256 of the body."""

    KIND: ClassVar[int] = Kind.RULING
    MAX_BYTES: ClassVar[int] = 384
    IS_REGIONAL: ClassVar[bool] = True

    anchor: str  # peer id of who signs, the only author
    epoch: int  # epoch of the claim
    claim: bytes  # sha256 of the claim's body, 32 bytes
    accuser: str  # peer id of the claim's author
    number: int  # of the claim, as there
    provider: str  # peer id of the accused, as in the claim's receipt
    consumer: str  # whom the work was for, as there
    receipt_epoch: int  # in which it is counted, as there
    lane: int  # as there
    work_kind: WorkKind  # as there
    session: bytes  # of the chunk, as in the claim; 16 bytes
    segment: int  # as in the claim
    index: int  # as in the claim
    outcome: Outcome  # what was found
    backer: Backer  # who has staked its bond
    settled_s: int  # unix second from which on it stands; of a claim that is ignored: when that says it was signed

    @property
    def authors(self) -> tuple[str, ...]:
        """The anchor alone."""
        return (self.anchor,)

    @property
    def chunk(self) -> ClaimedChunk:
        """What the claim is about."""
        slot = Slot(self.provider, self.consumer, self.receipt_epoch, self.lane, self.work_kind)
        return ClaimedChunk(slot, self.session, self.segment, self.index)

    @property
    def subkey(self) -> bytes:
        """The sha256 of the body, 32 bytes: no ruling replaces another."""
        return sha256(self.to_body()).digest()

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(anchor, epoch // 16)``."""
        return (peer_id_to_bytes(self.anchor), term_of(self.epoch))

    def expires_s(self, rules: Rules) -> float:
        """As long as evidence lives."""
        return rules.end_of_evidence(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """It stands by now, and does since the trial of a claim of the epoch."""
        if self.settled_s > now_s + MAX_FUTURE_S or not rules.has_begun(self.epoch, now_s):
            return "from the future"
        return None if is_timely(rules, self.epoch, self.settled_s) else "outside its trial"

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.anchor),
                self.epoch,
                self.claim,
                peer_id_to_bytes(self.accuser),
                self.number,
                peer_id_to_bytes(self.provider),
                peer_id_to_bytes(self.consumer),
                self.receipt_epoch,
                self.lane,
                int(self.work_kind),
                self.session,
                self.segment,
                self.index,
                int(self.outcome),
                int(self.backer),
                self.settled_s,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        ruling = cls(
            anchor=take_peer_id(fields, "anchor"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            claim=fields.blob("claim", 32),
            accuser=take_peer_id(fields, "accuser"),
            number=fields.uint("number", MAX_CLAIMS - 1),
            provider=take_peer_id(fields, "provider"),
            consumer=take_peer_id(fields, "consumer"),
            receipt_epoch=fields.uint("receipt_epoch", MAX_EPOCH),
            lane=fields.uint("lane", MAX_LANE),
            work_kind=WorkKind(fields.uint("work_kind", max(WorkKind), min_value=1)),
            session=fields.blob("session", 16),
            segment=fields.uint("segment", MAX_CHUNK),
            index=fields.uint("index", MAX_CHUNK),
            outcome=Outcome(fields.uint("outcome", max(Outcome), min_value=1)),
            backer=Backer(fields.uint("backer", max(Backer))),
            settled_s=fields.uint("settled_s", MAX_TIME_S),
        )
        fields.end()
        if ruling.provider in (ruling.accuser, ruling.consumer):
            raise BadRecord("nobody accuses himself, or works for himself")
        if ruling.work_kind in NO_CHUNKS:
            raise BadRecord("there are no chunks in that work")
        if not ruling.receipt_epoch <= ruling.epoch <= ruling.receipt_epoch + CLAIM_EPOCHS:
            raise BadRecord("the receipt is of another time")
        return ruling
