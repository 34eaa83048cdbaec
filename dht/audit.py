"""AUDIT: what a peer found when it did some of another one's work again. It stands under the auditor's key.

One audit stands for one session of one receipt slot; when more of its chunks have been checked, a newer one replaces
it. It names what was found and what it was measured with, and convicts nobody: a claim does that, with evidence.
This file does no I/O, reads no clock and does not know how work is checked. Pure.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import ClassVar, Self

from dht.codec import Fields, Value, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_BLOCKS, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH, MAX_ERROR_PPM, MAX_LANE, Slot, WorkKind

MAX_CHUNKS = 2**20
"""Bound of segments, of chunks of one session, and of those that one audit counts."""


class Finding(IntEnum):
    """What the check said; an audit that says neither is not published."""

    PASS = 1
    FAIL = 2


@dataclass(frozen=True, slots=True)
class Audit(Record):
    """AUDIT. Key ``(auditor, epoch)``, subkey the sha256 of what was audited: one session of one receipt slot."""

    KIND: ClassVar[int] = Kind.AUDIT
    MAX_BYTES: ClassVar[int] = 640
    IS_REGIONAL: ClassVar[bool] = True

    auditor: str  # peer id of who checked, the only author
    epoch: int  # epoch in which it was checked
    provider: str  # peer id of who had worked; not the auditor
    consumer: str  # peer id of whom it was for; may be the auditor
    receipt_epoch: int  # epoch that the work is counted in
    lane: int  # lane that it is counted in
    work_kind: WorkKind  # kind of work that it is counted as
    receipt: bytes  # sha256 of the body of the receipt whose commitment the chunk stands under, 32 bytes
    manifest: bytes  # identity of the model, 32 bytes
    start: int  # first block
    end: int  # one past the last block
    profile: bytes  # sha256 of how the weights were held, as in the receipt, 32 bytes
    session: bytes  # id of the session, 16 bytes
    segment: int  # of the chunk that the errors below are of: the worst that was checked
    index: int  # its number in the segment
    num_chunks: int  # chunks of the session that were checked, at least 1
    finding: Finding  # pass or fail
    median_ppm: int  # median error of the chunk's positions, millionths of the span's increment
    upper_ppm: int  # their calibrated upper quantile, as above
    max_ppm: int  # their largest, as above
    calibration: bytes  # sha256 of the calibration file that the thresholds are from, 32 bytes
    t: int  # when it was signed, unix seconds

    @property
    def authors(self) -> tuple[str, ...]:
        """The auditor alone."""
        return (self.auditor,)

    @property
    def slot(self) -> Slot:
        """Where the receipt of the work stands."""
        return Slot(self.provider, self.consumer, self.receipt_epoch, self.lane, self.work_kind)

    @property
    def subkey(self) -> bytes:
        """The sha256 of the canonical array of provider, consumer, receipt epoch, lane, kind of work and session."""
        provider, consumer = peer_id_to_bytes(self.provider), peer_id_to_bytes(self.consumer)
        audited: list[Value] = [provider, consumer, self.receipt_epoch, self.lane, int(self.work_kind), self.session]
        return sha256(encode(audited)).digest()

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(auditor, epoch)``: who floods a key with audits floods its own."""
        return (peer_id_to_bytes(self.auditor), self.epoch)

    def expires_s(self, rules: Rules) -> float:
        """The end of the epoch's window, later where more chunks were checked."""
        return rules.end_of_window(self.epoch, self.num_chunks)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun, and the audit was signed in it."""
        if not rules.has_begun(self.epoch, now_s):
            return "from the future"
        return None if rules.is_within(self.epoch, self.t) else "outside its epoch"

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.auditor),
                self.epoch,
                peer_id_to_bytes(self.provider),
                peer_id_to_bytes(self.consumer),
                self.receipt_epoch,
                self.lane,
                int(self.work_kind),
                self.receipt,
                self.manifest,
                self.start,
                self.end,
                self.profile,
                self.session,
                self.segment,
                self.index,
                self.num_chunks,
                int(self.finding),
                self.median_ppm,
                self.upper_ppm,
                self.max_ppm,
                self.calibration,
                self.t,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        audit = cls(
            auditor=take_peer_id(fields, "auditor"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            provider=take_peer_id(fields, "provider"),
            consumer=take_peer_id(fields, "consumer"),
            receipt_epoch=fields.uint("receipt_epoch", MAX_EPOCH),
            lane=fields.uint("lane", MAX_LANE),
            work_kind=WorkKind(fields.uint("work_kind", max(WorkKind), min_value=1)),
            receipt=fields.blob("receipt", 32),
            manifest=fields.blob("manifest", 32),
            start=fields.uint("start", MAX_BLOCKS),
            end=fields.uint("end", MAX_BLOCKS),
            profile=fields.blob("profile", 32),
            session=fields.blob("session", 16),
            segment=fields.uint("segment", MAX_CHUNKS),
            index=fields.uint("index", MAX_CHUNKS),
            num_chunks=fields.uint("num_chunks", MAX_CHUNKS, min_value=1),
            finding=Finding(fields.uint("finding", max(Finding), min_value=1)),
            median_ppm=fields.uint("median_ppm", MAX_ERROR_PPM),
            upper_ppm=fields.uint("upper_ppm", MAX_ERROR_PPM),
            max_ppm=fields.uint("max_ppm", MAX_ERROR_PPM),
            calibration=fields.blob("calibration", 32),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        reason = audit._contradiction()
        if reason is not None:
            raise BadRecord(reason)
        return audit

    def _contradiction(self) -> str | None:
        """Name what the fields contradict of each other, whatever the swarm."""
        if self.provider in (self.auditor, self.consumer):
            return "nobody checks, nor works for, himself"
        if self.start >= self.end:
            return "the span is empty"
        if self.receipt_epoch > self.epoch:
            return "it was checked before it was done"
        if not self.median_ppm <= self.upper_ppm <= self.max_ppm:
            return "a median above the upper quantile, or that above the largest"
        return None
