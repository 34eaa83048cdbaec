"""CONTEST: the accused, or an anchor for it, denies a claim; or who a verdict goes against asks for the next level.

What nobody denies is judged by default. Whether a contest came in time and from whom it must come is for
``dht.judgement``, which knows the claim. This file does no I/O and reads no clock. Pure.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from dht.codec import Fields, decode, encode
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import MAX_FUTURE_S, MAX_TIME_S, KeyPart, Kind, Record, take_peer_id
from dht.rules import MAX_SKEW_S, Rules
from dht.work import MAX_EPOCH

MAX_LEVEL = 3
"""Levels at which a claim is judged: holders of the blocks, the whole swarm, the anchors."""

TRIAL_EPOCHS = 3
"""A claim of epoch e is settled before epoch e + 3 begins; nothing about it is signed later."""


def is_timely(rules: Rules, epoch: int, t: int) -> bool:
    """Say whether ``t`` lies in the trial of a claim of ``epoch``, or so near that clocks may differ about it."""
    return rules.start_of(epoch) - MAX_SKEW_S <= t <= rules.start_of(epoch + TRIAL_EPOCHS) + MAX_SKEW_S


@dataclass(frozen=True, slots=True)
class Contest(Record):
    """CONTEST. Key ``(contester, epoch)``, subkey claim || level."""

    KIND: ClassVar[int] = Kind.CONTEST
    MAX_BYTES: ClassVar[int] = 256
    IS_REGIONAL: ClassVar[bool] = True

    contester: str  # peer id, the only author
    epoch: int  # epoch of the claim
    claim: bytes  # sha256 of the claim's body, 32 bytes
    accuser: str  # peer id of its author: under its key the claim stands
    level: int  # which level is asked for: 1 denies the claim, 2 and 3 appeal against what was found so far
    t: int  # when it was signed, unix seconds

    @property
    def authors(self) -> tuple[str, ...]:
        """The contester alone."""
        return (self.contester,)

    @property
    def subkey(self) -> bytes:
        """The claim's 32 bytes, the level in 1."""
        return self.claim + bytes([self.level])

    def key_parts(self, envelope: bytes = b"") -> tuple[KeyPart, ...]:
        """``(contester, epoch)``."""
        return (peer_id_to_bytes(self.contester), self.epoch)

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
        contester, accuser = peer_id_to_bytes(self.contester), peer_id_to_bytes(self.accuser)
        return encode([contester, self.epoch, self.claim, accuser, self.level, self.t])

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Decode and check; raises ``BadRecord``."""
        fields = Fields(decode(body, cls.MAX_BYTES))
        contest = cls(
            contester=take_peer_id(fields, "contester"),
            epoch=fields.uint("epoch", MAX_EPOCH),
            claim=fields.blob("claim", 32),
            accuser=take_peer_id(fields, "accuser"),
            level=fields.uint("level", MAX_LEVEL, min_value=1),
            t=fields.uint("t", MAX_TIME_S),
        )
        fields.end()
        if contest.level == 1 and contest.contester == contest.accuser:
            raise BadRecord("nobody denies his own claim")
        return contest
