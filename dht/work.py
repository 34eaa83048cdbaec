"""RECEIPT: what one peer did for another, counted up and signed by both; and the kinds of work that it may count.

A receipt is cumulative: within one epoch, and for one lane and kind of work, each one holds all that the earlier ones
hold, has a higher ``seq`` and replaces them. Of two with one ``seq``, whoever signed both has lied (``equivocation``).
A lane is what a provider does for a consumer with one span of one model, held in one way; any change takes another.
This file does no I/O, reads no clock and does not know how receipts come about. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_BLOCKS, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules

MAX_EPOCH = 2**32
"""Bound of epochs; with epochs of a second they reach to the year 2106."""

MAX_LANE = 2**32 - 1
"""Bound of lanes, which a consumer draws at random."""

MAX_SEQ = 2**20
"""Bound of a lane's receipts in one epoch: 48 a second for an epoch of six hours."""

MAX_COUNT = 2**53
"""Bound of counters; exact in a float, so that programs in any language read them alike."""

MAX_ERROR_PPM = 10**9
"""Bound of the errors of checked work, millionths of what a span adds to its input; what is larger counts as this."""

MAX_AMOUNT_PER_S = 50_000
"""No provider does more of any kind of work for one consumer: tokens, or kibibytes of weights, per second."""


class WorkKind(IntEnum):
    """What was done. Closed: a receipt of another kind is refused."""

    DECODE = 1  # one position of each row at a time, or a few
    PREFILL = 2  # many positions of each row at once: a prompt, or a history for a stage that replaces another
    TRAIN_FORWARD = 3  # a forward pass whose activations are kept, or whose loss is returned, for training
    BACKWARD = 4  # gradients, or perturbed forward passes in place of them
    AUDIT = 5  # work of others done again to check it
    RELAY = 6  # weights handed to another peer


_KINDS = tuple(WorkKind)
"""By their numbers, which begin with 1 and leave none out: asking the enumeration costs more."""

UNITS: Mapping[WorkKind, str] = MappingProxyType(
    {kind: "KiB" if kind is WorkKind.RELAY else "tokens" for kind in WorkKind}
)
"""What ``amount`` counts. Tokens are rows times positions; ``work`` is tokens times blocks, or KiB."""


class Slot(NamedTuple):
    """Where cumulative receipts replace each other: one provider, consumer, epoch, lane and kind of work."""

    provider: str  # peer id of who worked
    consumer: str  # peer id of whom it was for
    epoch: int
    lane: int
    work_kind: WorkKind


@dataclass(frozen=True, slots=True)
class Receipt(Record):
    """RECEIPT. Key ``(provider, epoch)``, subkey consumer || lane || kind of work."""

    KIND: ClassVar[int] = Kind.RECEIPT
    MAX_BYTES: ClassVar[int] = 420
    IS_REGIONAL: ClassVar[bool] = True

    provider: str  # peer id of who worked, first author
    consumer: str  # peer id of whom it was for, second author
    epoch: int  # epoch of the swarm that the work is counted in
    lane: int  # drawn by the consumer; one lane is one manifest, span and profile
    work_kind: WorkKind  # what was done
    seq: int  # rises with every receipt of this lane and kind in this epoch, from 1
    manifest: bytes  # identity of the model, 32 bytes
    start: int  # first block
    end: int  # one past the last block
    profile: bytes  # sha256 of how the weights were held, computed with, and hidden states sent; 32 bytes
    sessions: int  # sessions that have counted here
    amount: int  # tokens, or KiB, by the kind of work
    work: int  # amount times blocks; KiB where weights were relayed
    bytes_in: int  # payload bytes that the provider took
    bytes_out: int  # payload bytes that it gave
    commitment: bytes  # Merkle root over the chunks of the session that counted last, 32 bytes
    t_first: int  # when the first of it was done, unix seconds
    t_last: int  # when the last of it was done, unix seconds

    @property
    def authors(self) -> tuple[str, ...]:
        """Provider and consumer."""
        return (self.provider, self.consumer)

    @property
    def slot(self) -> Slot:
        """What it replaces older ones of, and is replaced in."""
        return Slot(self.provider, self.consumer, self.epoch, self.lane, self.work_kind)

    @property
    def subkey(self) -> bytes:
        """The consumer's 38 bytes, the lane in 4, the kind of work in 1."""
        return peer_id_to_bytes(self.consumer) + self.lane.to_bytes(4, "big") + bytes([self.work_kind])

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(provider, epoch)``."""
        return receipts_key(self.provider, self.epoch)

    def expires_s(self, rules: Rules) -> float:
        """The end of the epoch's window, later for a higher ``seq``."""
        return rules.end_of_window(self.epoch, self.seq)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun, and the work lies in it."""
        if not rules.has_begun(self.epoch, now_s):
            return "from the future"
        if not (rules.is_within(self.epoch, self.t_first) and rules.is_within(self.epoch, self.t_last)):
            return "outside its epoch"
        return None

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.provider),
                peer_id_to_bytes(self.consumer),
                self.epoch,
                self.lane,
                int(self.work_kind),
                self.seq,
                self.manifest,
                self.start,
                self.end,
                self.profile,
                self.sessions,
                self.amount,
                self.work,
                self.bytes_in,
                self.bytes_out,
                self.commitment,
                self.t_first,
                self.t_last,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        receipt = cls(
            provider=take_peer_id(fields, "provider"),
            consumer=take_peer_id(fields, "consumer"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            lane=fields.uint("lane", MAX_LANE),
            work_kind=_KINDS[fields.uint("work_kind", len(_KINDS), min_value=1) - 1],
            seq=fields.uint("seq", MAX_SEQ, min_value=1),
            manifest=fields.blob("manifest", 32),
            start=fields.uint("start", MAX_BLOCKS),
            end=fields.uint("end", MAX_BLOCKS),
            profile=fields.blob("profile", 32),
            sessions=fields.uint("sessions", MAX_COUNT, min_value=1),
            amount=fields.uint("amount", MAX_COUNT),
            work=fields.uint("work", MAX_COUNT),
            bytes_in=fields.uint("bytes_in", MAX_COUNT),
            bytes_out=fields.uint("bytes_out", MAX_COUNT),
            commitment=fields.blob("commitment", 32),
            t_first=fields.uint("t_first", MAX_TIME_S),
            t_last=fields.uint("t_last", MAX_TIME_S),
        )
        fields.end()
        reason = receipt._contradiction()
        if reason is not None:
            raise BadRecord(reason)
        return receipt

    def _contradiction(self) -> str | None:
        """Name what the fields contradict of each other, whatever the swarm."""
        if self.provider == self.consumer:
            return "nobody works for himself"
        if self.start >= self.end:
            return "the span is empty"
        if self.work != work_of(self.work_kind, self.amount, self.start, self.end):
            return "the work is not the amount times the blocks"
        if self.t_first > self.t_last:
            return "it ends before it begins"
        if self.amount > MAX_AMOUNT_PER_S * (self.t_last - self.t_first + 1):
            return "more than anyone can do in that time"
        return None


def receipts_key(provider: str, epoch: int) -> tuple[KeyPart, ...]:
    """Give the key parts under which a provider's receipts of one epoch stand."""
    return (peer_id_to_bytes(provider), epoch)


def work_of(kind: WorkKind, amount: int, start: int, end: int) -> int:
    """Count work: block-tokens, or KiB where weights were relayed."""
    return amount if kind is WorkKind.RELAY else amount * (end - start)
