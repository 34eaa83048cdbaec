"""What a committee says together: which of its members' votes count, and when they decide. Pure.

A vote counts when its member committed to it in time and opened just that in time. Who committed to two things has no
vote; who opened what it did not commit to has none either, so copying what others reveal is of no use.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from enum import Enum
from typing import NamedTuple

from dht.judgement.timeline import Act, Timeline, phase_of
from dht.verdict import Opinion, Verdict, VerdictPhase

LEVELS = (1, 2, 3)
"""Holders of the blocks, the whole swarm, the anchors."""

MIN_VOTES = 2
"""No level decides by the word of one."""


class Decision(Enum):
    """What a level says."""

    UPHELD = "upheld"
    REFUTED = "refuted"
    UNRESOLVED = "unresolved"


class Tally(NamedTuple):
    """The votes of one committee."""

    size: int  # members
    upheld: int  # votes that count, by opinion
    refuted: int
    inconclusive: int

    @property
    def num_valid(self) -> int:
        """Votes that count."""
        return self.upheld + self.refuted + self.inconclusive

    @property
    def is_close(self) -> bool:
        """Whether neither side has more than two thirds of the votes that say something."""
        decided = self.upheld + self.refuted
        return decided <= 3 * self.upheld <= 2 * decided


SeenAt = Collection[tuple[Verdict, float | None]]
"""Verdicts, and when each was first seen, or None."""


def count(verdicts: SeenAt, members: Iterable[str], level: int, timeline: Timeline) -> Tally:
    """Count the votes of a level.

    Args:
        verdicts: All about one claim, in any order.
        members: Of the committee.
        level: Of the committee.
        timeline: Of the claim.
    """
    sitting = tuple(members)
    committed: dict[str, set[tuple[bytes, Opinion]]] = defaultdict(set)
    opened: dict[str, set[tuple[bytes, Opinion]]] = defaultdict(set)
    for verdict, first_seen_s in verdicts:
        act = Act.COMMIT if verdict.phase is VerdictPhase.COMMIT else Act.REVEAL
        if verdict.level == level and timeline.is_timely(phase_of(level, act), verdict.t, first_seen_s):
            said = committed if act is Act.COMMIT else opened
            said[verdict.member].add((verdict.committed, verdict.opinion))
    opinions = Counter(_vote({made for made, _ in committed[each]}, opened[each]) for each in sitting)
    return Tally(len(sitting), opinions[Opinion.UPHELD], opinions[Opinion.REFUTED], opinions[Opinion.INCONCLUSIVE])


def _vote(committed: set[bytes], opened: set[tuple[bytes, Opinion]]) -> Opinion | None:
    if len(committed) != 1:
        return None
    return next((opinion for made, opinion in opened if made in committed), None)


def decide(tally: Tally, level: int) -> Decision:
    """Say what a level decides.

    Level 1 needs valid votes of two thirds of its members, and two thirds of these for one side: of seven, four at
    least. Levels 2 and 3 need votes of more than half, and more than half of these. Inconclusive votes count on
    neither side.
    """
    valid = tally.num_valid
    if valid < MIN_VOTES or not (3 * valid >= 2 * tally.size if level == 1 else 2 * valid > tally.size):
        return Decision.UNRESOLVED
    for votes, decision in ((tally.upheld, Decision.UPHELD), (tally.refuted, Decision.REFUTED)):
        if 3 * votes >= 2 * valid if level == 1 else 2 * votes > valid:
            return decision
    return Decision.UNRESOLVED
