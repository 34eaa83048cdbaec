"""What came of audits: results, and who has had how many of which kind. Pure; runs in the client's event loop."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from enum import StrEnum

from node.client.audit_opening import Opening

MAX_KEPT = 256
"""Results that are kept; all are counted."""
MAX_IN_VAIN = 3
"""Audits that come to nothing by one server's doing, one after the other, before it counts as one that is not there."""


class Outcome(StrEnum):
    """What an audit has shown."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """It could not be carried out, or says nothing."""
    NOT_AUDITABLE = "not_auditable"
    """What it needs is not kept: cropped, rows changed, a stage replaced."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a judge has measured of a chunk."""

    median_ppm: int
    """Median error of its positions, millionths of the span's increment."""
    upper_ppm: int
    """Their upper quantile, likewise."""
    max_ppm: int
    """Their largest."""
    calibration: bytes
    """sha256 of the calibration that it was judged by, 32 bytes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of an opening."""

    outcome: Outcome
    why: str = ""
    measured: Measured | None = None
    """None: it was not run again, or there was nothing to compare."""
    shows_itself: bool = False
    """Whether the opening alone shows it to whoever runs it again: not what a pool of several has shown."""
    was_run: bool = False
    """Whether the judge has run it again, whatever came of it."""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What came of one chunk that was drawn."""

    peer_id: str
    """Of the stage whose chunk it is."""
    session: bytes
    segment: int
    index: int
    outcome: Outcome
    why: str
    """One sentence, for people."""
    owner: str = ""
    """Whose doing it is that it failed, or came to nothing: of the stage or the one before; empty: nobody's."""
    opening: Opening | None = None
    """What was judged."""
    is_shadow: bool = False
    """Whether the session was a duplicate, of which nothing was delivered."""
    measured: Measured | None = None
    """What the judge has measured; None: nobody has run it again."""
    shows_itself: bool = False
    """Whether the opening alone shows what the judge found."""


class AuditBook:
    """The results of one client."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        """By the stage that was audited, or whose doing it is that it failed, and outcome."""
        self.results: deque[AuditResult] = deque(maxlen=MAX_KEPT)
        """The newest, without their openings."""
        self._in_vain: Counter[str] = Counter()

    def enter(self, result: AuditResult) -> None:
        """Take a result."""
        self.counts[result.owner or result.peer_id, result.outcome] += 1
        self.results.append(replace(result, opening=None))
        match result.outcome:
            case Outcome.INCONCLUSIVE if result.owner:
                self._in_vain[result.owner] += 1
            case Outcome.PASS | Outcome.FAIL:
                self._in_vain.pop(result.peer_id, None)

    def total(self, outcome: Outcome) -> int:
        """Return how many audits have had an outcome."""
        return sum(count for (_, what), count in self.counts.items() if what is outcome)

    def is_elusive(self, peer_id: str) -> bool:
        """Say whether audits keep coming to nothing by a server's doing."""
        return self._in_vain[peer_id] >= MAX_IN_VAIN
