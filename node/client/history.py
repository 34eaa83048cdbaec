"""The client's view of a session's history, as a pure state machine: it turns hidden states to run into steps.

No I/O, no tensors, no clock. Crops and row selections that transformers asks of a cache are remembered here and ride
on the next step, so that they cost no round trip of their own.

    length 8 ── crop_to(5) ──> length 5 ── select_rows(1, 1) ──> plan(2 tokens) = Step(position 5, crop 5, rows 1 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.errors import LocalError, PromptTooLong


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step to send: the tokens ``[first, first + num_tokens)`` of what was given to ``plan``."""

    position: int
    first: int
    num_tokens: int
    crop: int | None
    rows: tuple[int, ...] | None


class History:
    """Length, rows and pending changes of one session."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.batch: int | None = None
        """Rows of the next step; None before the first."""
        self.left_padding: tuple[int, ...] = ()
        """Padding positions at the start of each row; empty for none. Given when the session opens."""
        self._crop: int | None = None
        self._rows: tuple[int, ...] | None = None

    def crop_to(self, length: int) -> None:
        """Forget every position from ``length`` on."""
        if length >= self.length:
            return
        if length < 0:
            raise LocalError(f"A history cannot be cropped to {length} positions.")
        self.length = length
        self._crop = length

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep ``rows`` of the history in that order; repetition is allowed."""
        if self.batch is None:
            return
        strangers = [row for row in rows if not 0 <= row < self.batch]
        if strangers:
            raise LocalError(f"The history has {self.batch} rows and no row {strangers[0]}.")
        selected = tuple(rows) if self._rows is None else tuple(self._rows[row] for row in rows)
        self._rows = selected
        self.batch = len(rows)
        if self.left_padding:
            self.left_padding = tuple(self.left_padding[row] for row in rows)

    def restart(self, left_padding: tuple[int, ...]) -> None:
        """Begin anew with rows of this padding, as if nothing had been planned."""
        self.length, self.batch, self._crop, self._rows = 0, None, None, None
        self.left_padding = left_padding

    def check_room(self, num_tokens: int) -> None:
        """Pass if ``num_tokens`` more positions fit.

        Raises:
            PromptTooLong: the history would exceed the session's maximum length.
        """
        if self.length + num_tokens > self.max_length:
            raise PromptTooLong(
                f"The session was opened for {self.max_length} positions and would reach {self.length + num_tokens}; "
                f"open one with inference_session(max_length={self.length + num_tokens}) or more, or generate less."
            )

    def plan(self, batch: int, num_tokens: int, max_tokens_per_step: int) -> list[PlannedStep]:
        """Return the steps that append ``num_tokens`` positions, and count them as done.

        Raises:
            PromptTooLong: the history would exceed the session's maximum length.
            LocalError: the number of rows is not the session's.
        """
        if self.batch is not None and batch != self.batch:
            raise LocalError(f"The session has {self.batch} rows; {batch} were given.")
        self.check_room(num_tokens)
        steps = []
        for first in range(0, num_tokens, max_tokens_per_step):
            count = min(max_tokens_per_step, num_tokens - first)
            steps.append(PlannedStep(self.length + first, first, count, self._crop, self._rows))
            self._crop = self._rows = None
        self.length += num_tokens
        self.batch = batch
        return steps
