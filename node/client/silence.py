"""How long a session may be silent before its stages are asked for signs of life. Pure: the time is passed in.

The measure is the session's own steps: what is a long time for one model on one route is nothing for another.
"""

from __future__ import annotations

MIN_SILENCE_S = 0.75
"""A silence this long, or of two steps if that is longer, is looked into."""
MIN_SIGN_S = 0.75
"""A stage has so long, or three steps if that is longer, to give a sign of life."""
_AVERAGE_WEIGHT = 0.2


class Silence:
    """When something last came; all times are of the monotonic clock."""

    def __init__(self, now_s: float) -> None:
        self._progress_s = self._waiting_since_s = now_s
        self._step_s = 0.0
        """What one short step takes, averaged over the last few."""

    def begin(self, now_s: float) -> None:
        """Note that steps are sent and answers waited for."""
        self._progress_s = self._waiting_since_s = now_s

    def answered(self, now_s: float, *, alone: bool) -> None:
        """Note an answer; ``alone``: no other step was on the way, so that it tells how long one takes."""
        if alone:
            self._step_s += (now_s - self._progress_s - self._step_s) * (_AVERAGE_WEIGHT if self._step_s else 1)
        self._progress_s = self._waiting_since_s = now_s

    def repaired(self, now_s: float) -> None:
        """Note that what was silent has been replaced; the answer is waited for as before."""
        self._progress_s = now_s

    def waited_s(self, now_s: float) -> float:
        """Return how long the caller has waited for an answer, s."""
        return now_s - self._waiting_since_s

    def lasts_s(self, now_s: float) -> float:
        """Return how long nothing has come, s."""
        return now_s - self._progress_s

    @property
    def bound_s(self) -> float:
        """How long a silence is no cause to ask, s."""
        return max(MIN_SILENCE_S, 2 * self._step_s)

    @property
    def sign_s(self) -> float:
        """How long a stage that is asked has to answer, s."""
        return max(MIN_SIGN_S, 3 * self._step_s)
