"""CALIBRATION: by which numbers work on one model is judged, signed by a peer that others trust with that.

All who check must use the same thresholds, so these stand in the record itself; what is larger, such as the scales of
channels, is in a file that the record names by its hash. Whose calibration counts is for the reader: the anchors'.
This file does no I/O, reads no clock and does not know how errors are measured. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_BLOCKS, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH, MAX_ERROR_PPM, MAX_SEQ

MAX_THRESHOLDS = 48
"""Rows of one record: say, four ways of holding weights, three codecs, four lengths of spans."""

MAX_FILE_BYTES = 2**26
"""Largest calibration file, 64 MiB."""

MAX_WORD_BYTES = 16
"""Longest name of a way of holding weights, or of a codec."""

MAX_RATIO_MILLI = 2**20
"""Bound of the pooled ratio, thousandths."""


class Threshold(NamedTuple):
    """What holds of spans of one length whose weights are held in one way, and hidden states sent in another.

    Errors are millionths of the span's increment (``ppm``). Between pass and fail nothing is said.
    """

    weights: str  # what they are held in, as a server announces it ("bfloat16", "int8")
    codec: str  # of the hidden states ("bfloat16")
    num_blocks: int  # length of the span; of a length between two rows the longer one's counts
    median_pass_ppm: int  # a chunk whose median is at most this passes, if nothing below fails
    median_fail_ppm: int  # one whose median is above this fails
    upper_fail_ppm: int  # one whose calibrated upper quantile is above this fails
    max_fail_ppm: int  # one that has a position above this fails
    mean_ppm: int  # mean over honest chunks of their medians, for the pooled test
    pooled_ratio_milli: int  # chunks whose mean is above so many thousandths of that fail together; 0: no such test


@dataclass(frozen=True, slots=True)
class Calibration(Record):
    """CALIBRATION. Key ``(manifest,)``, subkey the signer's 38 bytes. Signed anew as long as it is to stand."""

    KIND: ClassVar[int] = Kind.CALIBRATION
    MAX_BYTES: ClassVar[int] = 3840
    IS_REGIONAL: ClassVar[bool] = True

    manifest: bytes  # identity of the model, 32 bytes
    signer: str  # peer id, the only author
    epoch: int  # epoch of this record
    seq: int  # rises with every calibration of the signer for the model in this epoch, from 1; the newest stands
    file: bytes  # sha256 of the calibration file, 32 bytes: by this audits name it
    file_bytes: int  # its size
    thresholds: tuple[Threshold, ...]  # rising by weights, codec and length; at least one
    t: int  # when it was signed, unix seconds

    @property
    def authors(self) -> tuple[str, ...]:
        """The signer alone."""
        return (self.signer,)

    @property
    def subkey(self) -> bytes:
        """The signer's 38 bytes."""
        return peer_id_to_bytes(self.signer)

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(manifest,)``."""
        return (self.manifest,)

    def expires_s(self, rules: Rules) -> float:
        """The end of the epoch's window, later for a higher ``seq``."""
        return rules.end_of_window(self.epoch, self.seq)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """The epoch has begun, and the calibration was signed in it."""
        if not rules.has_begun(self.epoch, now_s):
            return "from the future"
        return None if rules.is_within(self.epoch, self.t) else "outside its epoch"

    def threshold_for(self, weights: str, codec: str, num_blocks: int) -> Threshold | None:
        """Return the row for spans of ``num_blocks``: that length's, or the next longer one's; None where none is."""
        rows = [row for row in self.thresholds if (row.weights, row.codec) == (weights, codec)]
        return next((row for row in rows if row.num_blocks >= num_blocks), None)

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                self.manifest,
                peer_id_to_bytes(self.signer),
                self.epoch,
                self.seq,
                self.file,
                self.file_bytes,
                [list(row) for row in self.thresholds],
                self.t,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        calibration = cls(
            manifest=fields.blob("manifest", 32),
            signer=take_peer_id(fields, "signer"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            seq=fields.uint("seq", MAX_SEQ, min_value=1),
            file=fields.blob("file", 32),
            file_bytes=fields.uint("file_bytes", MAX_FILE_BYTES, min_value=1),
            thresholds=_take_thresholds(fields.items("thresholds", MAX_THRESHOLDS)),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        return calibration


def _take_thresholds(items: Sequence[object]) -> tuple[Threshold, ...]:
    rows = tuple(_take_threshold(Fields(item)) for item in items)
    places = [row[:3] for row in rows]
    if not rows or any(before >= after for before, after in pairwise(places)):
        raise BadRecord("thresholds are missing, out of order, or stand twice")
    return rows


def _take_threshold(fields: Fields) -> Threshold:
    row = Threshold(
        weights=fields.text("weights", MAX_WORD_BYTES),
        codec=fields.text("codec", MAX_WORD_BYTES),
        num_blocks=fields.uint("num_blocks", MAX_BLOCKS, min_value=1),
        median_pass_ppm=fields.uint("median_pass_ppm", MAX_ERROR_PPM),
        median_fail_ppm=fields.uint("median_fail_ppm", MAX_ERROR_PPM),
        upper_fail_ppm=fields.uint("upper_fail_ppm", MAX_ERROR_PPM),
        max_fail_ppm=fields.uint("max_fail_ppm", MAX_ERROR_PPM),
        mean_ppm=fields.uint("mean_ppm", MAX_ERROR_PPM),
        pooled_ratio_milli=fields.uint("pooled_ratio_milli", MAX_RATIO_MILLI),
    )
    fields.end()
    if not row.median_pass_ppm <= row.median_fail_ppm <= row.upper_fail_ppm <= row.max_fail_ppm:
        raise BadRecord("thresholds that exclude each other")
    return row
