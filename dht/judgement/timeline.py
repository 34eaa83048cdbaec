"""What may be signed when in the trial of a claim, counted from the claim's own time. Pure.

The unit is half a contest window: a twelfth of an epoch, half an hour where an epoch takes six. What is signed in a
phase (``=``) is on its way for one unit more (``.``), and only then does anybody act upon it: so whoever waits for
others to reveal, and dates a commitment back, is seen too late by everyone who watches.

                 0         1         2
                 0123456789012345678901234
    1 contest    ==.
    1 commit        ==.
    1 reveal           =.
    2 appeal             =.
    2 commit               ===.
    2 reveal                   =.
    3 appeal                     =.
    3 commit                       ===.
    3 reveal                           =.

Level 2 takes longer to commit because its members download the blocks first. A claim is settled two epochs after it
was signed at the latest.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dht.rules import Rules

UNITS_PER_EPOCH = 12
"""Half contest windows in one epoch; a unit is a second at least."""

MAX_UNITS = 24
"""From the claim to the end of the last phase."""


class Act(Enum):
    """What is signed in a phase."""

    CONTEST = "contest"  # the claim is denied; what nobody denies is judged by default
    COMMIT = "commit"
    REVEAL = "reveal"
    APPEAL = "appeal"  # who has lost so far asks for this level


class Phase(NamedTuple):
    """One stretch of a trial, in units after the claim."""

    level: int  # 1 to 3
    act: Act
    start: int
    end: int

    @property
    def settled(self) -> int:
        """When what was signed in it has arrived everywhere."""
        return self.end + 1


PHASES = (
    Phase(1, Act.CONTEST, 0, 2),
    Phase(1, Act.COMMIT, 3, 5),
    Phase(1, Act.REVEAL, 6, 7),
    Phase(2, Act.APPEAL, 8, 9),
    Phase(2, Act.COMMIT, 10, 13),
    Phase(2, Act.REVEAL, 14, 15),
    Phase(3, Act.APPEAL, 16, 17),
    Phase(3, Act.COMMIT, 18, 21),
    Phase(3, Act.REVEAL, 22, 23),
)
_BY_NAME = {(phase.level, phase.act): phase for phase in PHASES}


def phase_of(level: int, act: Act) -> Phase:
    """Return the phase of a level in which something is signed."""
    return _BY_NAME[level, act]


@dataclass(frozen=True, slots=True)
class Timeline:
    """The phases of one claim in unix seconds."""

    t: int  # when the claim was signed, unix seconds
    unit_s: int  # half a contest window, seconds

    @classmethod
    def of(cls, t: int, rules: Rules) -> "Timeline":
        """Return that of a claim signed at ``t`` in a swarm with these rules."""
        return cls(t, max(1, rules.epoch_s // UNITS_PER_EPOCH))

    def opens_s(self, phase: Phase) -> int:
        """First second at which something may be signed in a phase."""
        return self.t + phase.start * self.unit_s

    def ends_s(self, phase: Phase) -> int:
        """First second at which nothing may any more."""
        return self.t + phase.end * self.unit_s

    def settles_s(self, phase: Phase) -> int:
        """Second at which what was signed in it has arrived, or does not count for whoever has watched."""
        return self.t + phase.settled * self.unit_s

    @property
    def ends_all_s(self) -> int:
        """Second at which the claim is settled at the latest."""
        return self.t + MAX_UNITS * self.unit_s

    def open_phase(self, now_s: float) -> Phase | None:
        """Return the phase in which something may be signed now, if there is one."""
        return next((phase for phase in PHASES if self.opens_s(phase) <= now_s < self.ends_s(phase)), None)

    def is_timely(self, phase: Phase, t: int, first_seen_s: float | None) -> bool:
        """Say whether what was signed at ``t`` counts in a phase.

        Args:
            phase: In which it must have been signed.
            t: When it says that it was, unix seconds.
            first_seen_s: When this node first saw it, where it was watching all the time; None: it was not.
        """
        is_seen = first_seen_s is None or first_seen_s < self.settles_s(phase)
        return is_seen and self.opens_s(phase) <= t < self.ends_s(phase)

    def is_claim_timely(self, first_seen_s: float | None) -> bool:
        """Say whether the claim itself was there early enough for the accused to have half its window left."""
        return first_seen_s is None or first_seen_s < self.t + self.unit_s
