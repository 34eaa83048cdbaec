"""What a donor wants to know of the last minute: how much was computed, how full forwards were, how long steps waited.

``observe`` is called by the compute thread, everything else by the event loop; appending to a deque is atomic.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from node.engine import BatchReport

WINDOW_S = 60.0
_MAX_REPORTS = 65_536
"""Forwards remembered at most: 1,000 in every second of the window."""


@dataclass(frozen=True, slots=True)
class Load:
    """A server's work within one window."""

    tokens_per_s: float
    """Rows times positions through this span."""
    batch_mean: float
    """Sessions per forward, weighed by sessions: what a step shared its forward with, itself included."""
    busy_share: float
    """Share of the time in which the compute thread ran a forward, 0 to 1."""
    wait_p50_ms: float
    """Median wait of a step from its arrival to its first forward."""
    wait_p95_ms: float
    """The same for the slowest twentieth."""


class Statistics:
    """Remembers the forwards of the last ``window_s`` seconds, or since ``started_s`` if that is less."""

    def __init__(self, started_s: float, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._started_s = started_s
        self._reports: deque[tuple[float, BatchReport]] = deque(maxlen=_MAX_REPORTS)

    def observe(self, now_s: float, report: BatchReport) -> None:
        """Remember one forward that ended at ``now_s``."""
        self._reports.append((now_s, report))

    def load(self, now_s: float) -> Load:
        """Return what happened within the window that ends at ``now_s``."""
        while self._reports and self._reports[0][0] < now_s - self.window_s:
            self._reports.popleft()
        reports = [report for _, report in list(self._reports)]
        elapsed_s = max(1e-3, min(self.window_s, now_s - self._started_s))
        waits_s = sorted(wait for report in reports for wait in report.waits_s)
        num_jobs = sum(report.num_jobs for report in reports)
        return Load(
            tokens_per_s=sum(report.num_tokens for report in reports) / elapsed_s,
            batch_mean=sum(report.num_jobs**2 for report in reports) / num_jobs if num_jobs else 0.0,
            busy_share=min(1.0, sum(report.seconds for report in reports) / elapsed_s),
            wait_p50_ms=1000 * _quantile(waits_s, 0.5),
            wait_p95_ms=1000 * _quantile(waits_s, 0.95),
        )


def _quantile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of ``ordered`` lies; 0 when it is empty."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
