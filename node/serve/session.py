"""What a stage may be asked in a session, as a pure state machine: frames in, work orders out.

No I/O, no tensors, no clock. The handler feeds it the steps that arrive; it says what to compute, or raises
``SessionError`` for what the peer may not ask. State moves when a step is admitted; a failed step ends the session, so
there is nothing to roll back.

    open ── step ──> position == length ───────────────────────────> Compute, length += tokens
            step ──> position + tokens == length, same as the last ─> Repeat (send the last output again)
            step with crop  ──> length = crop first
            step with rows  ──> batch = rows first, padding follows its rows
            step with a number that was taken ──────────────────────> Known (nothing to do: its output was handed on)
            step as history, before the first other ────────────────> Compute, not counted
            anything else   ──> SessionError
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from node.errors import Refused, SessionError
from node.wire import (
    CODECS,
    IDS,
    LOGITS,
    MAX_BATCH,
    MAX_SCORED_POSITIONS,
    MAX_STEP_POSITIONS,
    Open,
    Step,
    max_step_tokens,
    payload_bytes,
)


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a step; what changes before it stands beside it."""

    step: Step
    crop: int | None
    """Positions to keep, if fewer than the history has."""
    rows: tuple[int, ...] | None
    """Rows to keep, if not all in order."""
    left_padding: tuple[int, ...]
    """Padding per row after the row selection; empty for none."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The step was computed already: send its output again."""

    step: Step


@dataclass(frozen=True, slots=True)
class Known:
    """The step was sent again, after a stage was replaced, and this stage has handed its output on already."""

    step: Step


Order: TypeAlias = Compute | Repeat | Known


class StageSession:
    """The state of one session at one stage.

    Args:
        opened: what the client asked for.
        hidden_size: of the model.
        vocab_size: token ids are below this; 0 where no ids are embedded.

    Raises:
        SessionError: ``opened`` contradicts itself.
        Refused: it asks for a codec that this version does not speak.
    """

    def __init__(self, opened: Open, hidden_size: int, vocab_size: int = 0) -> None:
        if opened.codec not in CODECS:
            raise Refused("unsupported", f"This server speaks the codecs {', '.join(CODECS)}; choose one of them.")
        if not 1 <= opened.batch <= MAX_BATCH:
            raise SessionError(f"A session opens with 1 to {MAX_BATCH} rows, not {opened.batch}.")
        if opened.left_padding and len(opened.left_padding) != opened.batch:
            raise SessionError("Left padding is given for every row or for none.")
        if any(padding >= max(1, opened.max_length) for padding in opened.left_padding):
            raise SessionError("A row is padding up to the session's maximum length.")
        _check_ends(opened)
        self.opened = opened
        self.length = 0
        self.batch = opened.batch
        self.previous = opened.previous
        """Peer that may push steps."""
        self.taken = opened.steps
        """Steps admitted, those included that were answered before the session was opened here."""
        self._codec, self._width = (IDS, 1) if opened.embed else (opened.codec, hidden_size)
        self._vocab_size = vocab_size
        self._left_padding = opened.left_padding if any(opened.left_padding) else ()
        self._last: tuple[int, tuple[int, ...], int] | None = None

    @property
    def max_step_bytes(self) -> int:
        """Payload of the longest step: as many rows and positions as the session was opened for, within bounds."""
        num_positions = min(self.opened.batch * self.opened.max_length, MAX_STEP_POSITIONS)
        return payload_bytes(self._codec, (1, num_positions, self._width))

    @property
    def output_codec(self) -> str:
        """How the stage's outputs travel."""
        if self.opened.top:
            return LOGITS
        return IDS if self.opened.sampling else self.opened.codec

    def receive(self, step: Step) -> Order:
        """Admit ``step`` and say what to do for it; see ``judge``."""
        order = self.judge(step)
        if isinstance(order, Compute):
            self.admit(order)
        return order

    def judge(self, step: Step) -> Order:
        """Say what is to be done for ``step``, and change nothing.

        Raises:
            SessionError: the step does not fit into the session; the session must end.
        """
        if step.codec != self._codec:
            raise SessionError(f"Steps of this session come in the codec {self._codec}, not in {step.codec}.")
        rows, tokens, width = step.shape
        if width != self._width:
            raise SessionError(f"Steps of this session have the hidden size {self._width}, not {width}.")
        if tokens > max_step_tokens(rows):
            raise SessionError(f"A step of {rows} rows carries at most {max_step_tokens(rows)} tokens, not {tokens}.")
        if self.opened.top or self.opened.sampling:
            _check_scored(step)
        if step.replay:
            self._check_history(step)
        elif step.number and step.number <= self.taken:
            return Known(step)
        elif step.number > self.taken + 1:
            raise SessionError(f"The session has taken {self.taken} steps; step {step.number} is not the next.")
        elif self._is_repeat(step):
            return Repeat(step)
        length = self._length_after_crop(step.crop)
        kept = self._kept_rows(step.rows, rows)
        if step.position != length:
            raise SessionError(f"The session stands at position {length}, the step at {step.position}.")
        if length + tokens > self.opened.max_length:
            raise SessionError(
                f"The step reaches position {length + tokens}; the session was opened for {self.opened.max_length}."
            )
        if self.opened.embed:
            self._check_ids(step)
        padding = self._left_padding
        if kept is not None and padding:
            padding = tuple(padding[row] for row in kept)
        return Compute(step, length if length < self.length else None, kept, padding)

    def admit(self, order: Compute) -> None:
        """Let the session stand where it will when a step that was judged just now has been computed."""
        step = order.step
        self._left_padding = order.left_padding
        self.length, self.batch = step.position + step.shape[1], step.shape[0]
        self._last = _signature(step)
        self.taken += not step.replay

    def _check_history(self, step: Step) -> None:
        if self.taken != self.opened.steps:
            raise SessionError("History comes before the first step.")
        if step.crop is not None or step.rows is not None:
            raise SessionError("History comes as it stands, without crop and rows.")
        if step.number not in (0, self.opened.steps):
            raise SessionError(f"The history ends with step {self.opened.steps}, not with step {step.number}.")

    def _is_repeat(self, step: Step) -> bool:
        """A step with a crop is computed again instead: cropping back to it makes it idempotent anyway."""
        return self._last == _signature(step) and step.crop is None and step.rows is None

    def _check_ids(self, step: Step) -> None:
        """Refuse ids beyond the vocabulary here, where it costs the session alone: a look-up would cost more."""
        ids = struct.unpack(f"<{step.shape[0] * step.shape[1]}I", step.payload)
        if max(ids) >= self._vocab_size:
            raise SessionError(f"The vocabulary has the ids 0 to {self._vocab_size - 1}; the step has {max(ids)}.")

    def _length_after_crop(self, crop: int | None) -> int:
        if crop is None:
            return self.length
        if crop > self.length:
            raise SessionError(f"The session has {self.length} positions and cannot be cropped to {crop}.")
        return crop

    def _kept_rows(self, selected: tuple[int, ...] | None, rows: int) -> tuple[int, ...] | None:
        if selected is None:
            if rows != self.batch:
                raise SessionError(f"The session has {self.batch} rows, the step {rows}.")
            return None
        if len(selected) != rows:
            raise SessionError(f"The step selects {len(selected)} rows and carries {rows}.")
        if any(row >= self.batch for row in selected):
            raise SessionError(f"The step selects a row beyond the session's {self.batch}.")
        return None if selected == tuple(range(self.batch)) else selected


def _signature(step: Step) -> tuple[int, tuple[int, ...], int]:
    return step.position, step.shape, step.logits_to_keep


def _check_ends(opened: Open) -> None:
    if opened.embed and opened.start:
        raise SessionError("Token ids are embedded by the first stage.")
    if (opened.top or opened.sampling) and opened.next:
        raise SessionError("Logits and samples are for the last stage, which answers the client.")
    if opened.top and opened.sampling:
        raise SessionError("A stage answers with logits or with samples, not with both.")
    if opened.sampling and not opened.sampling[2]:
        raise SessionError("Nothing can be sampled with a top_p of 0; give more.")


def _check_scored(step: Step) -> None:
    rows, tokens, _ = step.shape
    if not 1 <= step.logits_to_keep <= tokens or rows * step.logits_to_keep > MAX_SCORED_POSITIONS:
        raise SessionError(
            f"Logits are for 1 to {tokens} positions of this step, and {MAX_SCORED_POSITIONS} over all rows, not for "
            f"{step.logits_to_keep} of {rows} rows."
        )
