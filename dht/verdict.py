"""VERDICT: what one member of a committee found of a claim; first as a commitment, then opened.

A commitment binds its member, so a copied one opens for nobody else; an opinion that was not committed to does not
count. Who is of the committee and when it may speak is for ``dht.judgement``.
This file does no I/O, reads no clock and draws no salt. Pure.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import ClassVar, Self

from dht.codec import Fields, Value, decode, encode
from dht.contest import MAX_LEVEL, is_timely
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_FUTURE_S, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import Rules
from dht.work import MAX_EPOCH, MAX_ERROR_PPM

SALT_BYTES = 32
"""Random bytes that keep a commitment to one of three opinions from being guessed."""


class VerdictPhase(IntEnum):
    """Which half of a verdict it is."""

    COMMIT = 1
    REVEAL = 2


class Opinion(IntEnum):
    """What a member found."""

    SECRET = 0  # of a commitment: not said yet
    UPHELD = 1  # the work was false
    REFUTED = 2  # the work was right, or the evidence does not hold
    INCONCLUSIVE = 3  # between the thresholds, or the evidence could not be had


def commitment_of(member: str, claim: bytes, level: int, opinion: Opinion, salt: bytes) -> bytes:
    """Return the commitment of a member to an opinion, 32 bytes.

    Args:
        member: Peer id.
        claim: The claim's hash, 32 bytes.
        level: Of the committee.
        opinion: What it found.
        salt: 32 random bytes, kept until it is opened.
    """
    said: list[Value] = ["efedllm/verdict/1", peer_id_to_bytes(member), claim, level, int(opinion), salt]
    return sha256(encode(said)).digest()


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """VERDICT. Key ``(member, epoch)``, subkey claim || level || phase."""

    KIND: ClassVar[int] = Kind.VERDICT
    MAX_BYTES: ClassVar[int] = 320
    IS_REGIONAL: ClassVar[bool] = True

    member: str  # peer id of who judges, the only author
    epoch: int  # epoch of the claim
    claim: bytes  # sha256 of the claim's body, 32 bytes
    level: int  # of the committee, 1 to 3
    phase: VerdictPhase  # commitment, or the same opened
    commitment: bytes  # ``commitment_of``, 32 bytes; empty where it is opened
    opinion: Opinion  # what the member found; SECRET in a commitment
    salt: bytes  # 32 bytes; empty in a commitment
    error_ppm: int  # median error that the member found, millionths of the span's increment; 0 in a commitment
    t: int  # when it was signed, unix seconds

    @property
    def authors(self) -> tuple[str, ...]:
        """The member alone."""
        return (self.member,)

    @property
    def subkey(self) -> bytes:
        """The claim's 32 bytes, the level in 1, the phase in 1."""
        return self.claim + bytes([self.level, self.phase])

    @property
    def committed(self) -> bytes:
        """The commitment that this is, or that this opens; 32 bytes."""
        if self.phase is VerdictPhase.COMMIT:
            return self.commitment
        return commitment_of(self.member, self.claim, self.level, self.opinion, self.salt)

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(member, epoch)``."""
        return (peer_id_to_bytes(self.member), self.epoch)

    def expires_s(self, rules: Rules) -> float:
        """As long as evidence lives."""
        return rules.end_of_evidence(self.epoch)

    def objection(self, rules: Rules, now_s: float) -> str | None:
        """It was signed by now, and while a claim of the epoch is on trial."""
        if self.t > now_s + MAX_FUTURE_S or not rules.has_begun(self.epoch, now_s):
            return "from the future"
        return None if is_timely(rules, self.epoch, self.t) else "outside its trial"

    def to_body(self) -> bytes:
        """Encode canonically."""
        return encode(
            [
                peer_id_to_bytes(self.member),
                self.epoch,
                self.claim,
                self.level,
                int(self.phase),
                self.commitment,
                int(self.opinion),
                self.salt,
                self.error_ppm,
                self.t,
            ]
        )

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        verdict = cls(
            member=take_peer_id(fields, "member"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            claim=fields.blob("claim", 32),
            level=fields.uint("level", MAX_LEVEL, min_value=1),
            phase=VerdictPhase(fields.uint("phase", max(VerdictPhase), min_value=1)),
            commitment=fields.blob("commitment", 0, 32),
            opinion=Opinion(fields.uint("opinion", max(Opinion))),
            salt=fields.blob("salt", 0, SALT_BYTES),
            error_ppm=fields.uint("error_ppm", MAX_ERROR_PPM),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        is_secret = (len(verdict.commitment), verdict.opinion, verdict.salt, verdict.error_ppm) == (
            32, Opinion.SECRET, b"", 0,
        )  # fmt: skip
        is_open = not verdict.commitment and verdict.opinion is not Opinion.SECRET and len(verdict.salt) == SALT_BYTES
        if not (is_secret if verdict.phase is VerdictPhase.COMMIT else is_open):
            raise BadRecord("a commitment tells nothing, and what is opened tells all")
        return verdict


def commit(member: str, epoch: int, claim: bytes, level: int, opinion: Opinion, salt: bytes, t: int) -> Verdict:
    """Make the first half of a verdict; arguments as the fields of ``Verdict``."""
    commitment = commitment_of(member, claim, level, opinion, salt)
    return Verdict(member, epoch, claim, level, VerdictPhase.COMMIT, commitment, Opinion.SECRET, b"", error_ppm=0, t=t)


def reveal(
    member: str, epoch: int, claim: bytes, level: int, opinion: Opinion, salt: bytes, error_ppm: int, t: int
) -> Verdict:
    """Make the second half, which opens the first; arguments as the fields of ``Verdict``."""
    return Verdict(member, epoch, claim, level, VerdictPhase.REVEAL, b"", opinion, salt, error_ppm, t)
