"""What canaries have found of each server in each epoch, for people and scripts. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from node.client.audit_book import Outcome
from node.verify.canary_plan import Held


@dataclass(frozen=True, slots=True)
class Report:
    """One server in one epoch."""

    epoch: int
    held: Held
    counts: Counter[Outcome] = field(default_factory=Counter)
    """Chunks by outcome; of a fail, those that are its doing."""
    num_broken: int = 0
    """Canaries for its sake that came to nothing."""

    def in_words(self) -> str:
        """Say it in a sentence."""
        who = f"Epoch {self.epoch}: {self.held.peer_id} (blocks {self.held.start}:{self.held.end})"
        num_failed, num_passed = self.counts[Outcome.FAIL], self.counts[Outcome.PASS]
        num_others = self.counts.total() - num_failed - num_passed
        broken = f"; sessions broken off: {self.num_broken}" if self.num_broken else ""
        if not self.counts.total():
            return f"{who} was not checked{broken}."
        verdict = "FAILED" if num_failed else ("passed" if num_passed else "is undecided")
        return (
            f"{who} {verdict}; chunks that passed: {num_passed}, that failed: {num_failed}, "
            f"that said nothing: {num_others}{broken}."
        )

    def as_fields(self) -> dict[str, object]:
        """Return it as an event's fields."""
        return {
            "epoch": self.epoch,
            "peer_id": self.held.peer_id,
            "blocks": f"{self.held.start}:{self.held.end}",
            **{outcome.value: self.counts[outcome] for outcome in Outcome},
            "broken": self.num_broken,
        }


class EpochBook:
    """Reports that are being written."""

    def __init__(self) -> None:
        self._reports: dict[tuple[int, str], Report] = {}

    def enter(self, epoch: int, held: Held, outcome: Outcome) -> bool:
        """Count a chunk; say whether it is the server's first fail in this epoch."""
        report = self._report(epoch, held)
        report.counts[outcome] += 1
        return outcome is Outcome.FAIL and report.counts[outcome] == 1

    def broke(self, epoch: int, held: Held) -> None:
        """Count a canary for a server's sake that came to nothing."""
        report = self._report(epoch, held)
        place = (epoch, held.peer_id)
        self._reports[place] = Report(epoch, report.held, report.counts, report.num_broken + 1)

    def _report(self, epoch: int, held: Held) -> Report:
        return self._reports.setdefault((epoch, held.peer_id), Report(epoch, held))

    def take(self, before_epoch: int | None = None) -> list[Report]:
        """Return the reports of epochs that have ended, or all, and forget them."""
        due = [place for place in sorted(self._reports) if before_epoch is None or place[0] < before_epoch]
        return [self._reports.pop(place) for place in due]
