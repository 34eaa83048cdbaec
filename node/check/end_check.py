"""The check of a stage at an end of a route, of a client without weights: token ids go in, or logits or ids come out.

    ids ── embed, in the server's dtype ──┐
    hidden states ────────────────────────┴─> span, in float32 ──┬─> as any hidden states (node.check.check)
                                                                 └─> head, in float32 ──> logits, likeliest token

A look-up is exact, so what is embedded as the server does it is what the server had. Behind its last block a stage
hands nothing on, so there is no hidden state of its own to compute the head from: span and head are checked together,
by thresholds that were found with both. Tokens that a server draws by a seed are not checked: a rounding error in the
logits may change one without a bound. The bytes may be anybody's. Runs in the compute thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from node.check.calibration import Calibration
from node.check.check import (
    MAX_CHECK_BYTES,
    WINDOW,
    CheckResult,
    bytes_needed,
    check_memory,
    judge,
    padding_within,
    rows_errors,
    run_reference,
)
from node.check.final_token import greedy_errors, logit_errors
from node.check.patience import look
from node.errors import BadOpening, CannotCheck
from node.model.ends import Ends
from node.model.span import Span
from node.model.tensors import from_payload
from node.model.tokens import ids_from_payload, logits_from_payload
from node.wire import CODECS, IDS, LOGITS, Payload, payload_bytes

_POSITIONS_AT_ONCE = 64
"""Rows times positions whose logits are in memory at once."""
_LOGIT_COPIES = 6
"""Times that they are there."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of consecutive positions, as they travelled."""

    first: int
    """First position."""
    codec: str
    num_positions: int
    width: int
    """Numbers of a position: channels, logits, or 1 for ids."""
    payload: Payload

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.first + self.num_positions


@dataclass(frozen=True, slots=True)
class EndWork:
    """One chunk of a session at a stage that embeds or answers, and all that went in before it."""

    rows: int
    hidden_size: int
    codec: str
    """Of hidden states."""
    first: int
    """First position of the chunk."""
    inputs: Part
    """Of positions 0 to the end of the chunk: token ids, or hidden states."""
    outputs: tuple[Part, ...]
    """Hidden states of all the chunk's positions; or logits or ids of those that were answered for, in their order."""
    left_padding: tuple[int, ...] = ()
    """Padding positions at the start of each row; empty for none."""
    top: int = 0
    """Logits of a position that were asked for."""
    is_greedy: bool = True
    """Whether ids that came out are the likeliest ones; else they were drawn."""

    @property
    def end(self) -> int:
        """One past the chunk's last position."""
        return self.inputs.end

    @property
    def embeds(self) -> bool:
        """Whether token ids went in."""
        return self.inputs.codec == IDS

    @property
    def answers(self) -> bool:
        """Whether logits or ids came out."""
        return self.outputs[0].codec in (IDS, LOGITS)


@dataclass(frozen=True, slots=True)
class LoadedEnds:
    """What stands before and behind the blocks, as far as a chunk needs it."""

    entry: Ends | None
    """With the embedding, in the dtype in which the server computes."""
    exit: Ends | None
    """With the head, in float32."""


def check_ends(
    span: Span,
    ends: LoadedEnds,
    work: EndWork,
    calibration: Calibration,
    held_in: str,
    *,
    max_bytes: int = MAX_CHECK_BYTES,
) -> CheckResult:
    """Check one chunk; of answers errors are in units of how far logits scatter, and the ratio of greedy ones is none.

    Args:
        span: the blocks that the server ran, in float32 on the weights that it declares.
        ends: beside them.
        work: what went in and what came out, of sizes that ``check_sizes`` has passed.
        calibration: of the model.
        held_in: what the server declares that its weights are held in.
        max_bytes: memory to take beside the weights, at most.

    Raises:
        CannotCheck: the calibration says nothing of such a span, it takes more memory than allowed, or tokens were
            drawn.
        SessionError: an id that went in is not in the vocabulary.
    """
    vocabulary = ends.exit.vocab_size if ends.exit is not None else 0
    needed = bytes_needed(span, work.rows, work.end, work.hidden_size)
    check_memory(needed + 4 * _LOGIT_COPIES * max(_POSITIONS_AT_ONCE, work.rows) * vocabulary, work.end, max_bytes)
    inputs, reference = run_reference(span, _entering(ends, work, span), work.first, work.left_padding)
    if not work.answers:
        standard = calibration.standard(held_in, work.codec, span.start, span.end)
        outputs = torch.cat([_hidden(part, work, span.device) for part in work.outputs], dim=1)
        skipped = padding_within(work.first, work.rows, work.left_padding)
        return judge(rows_errors(inputs, outputs, reference, work.codec, standard, skipped), standard)
    assert ends.exit is not None
    standard = calibration.answer_standard(held_in, work.codec, span.start)
    result = judge(_answer_errors(ends.exit, reference, work), standard)
    return result if work.top else dataclasses.replace(result, ratio=math.nan)


def check_sizes(work: EndWork) -> None:
    """Pass if sizes, rows and positions fit together and something of it can be checked; reads no payload.

    Raises:
        BadOpening: they do not.
        CannotCheck: what came out was drawn by a seed.
    """
    if work.codec not in CODECS or work.rows < 1 or work.hidden_size < 1 or not work.outputs:
        raise BadOpening("The opening names no codec, or holds no rows, no channels or no outputs.")
    if work.outputs[0].codec == IDS and not work.is_greedy:
        raise CannotCheck("Tokens that a server drew by a seed are not checked.")
    if work.inputs.first or not 0 <= work.first < work.end or work.end - work.first > WINDOW:
        raise BadOpening(f"The chunk begins at {work.first}, the inputs are of {work.inputs.first} to {work.end}.")
    _check_part(work.inputs, work, (IDS, work.codec))
    at = work.first
    for part in work.outputs:
        _check_part(part, work, (work.outputs[0].codec,))
        if part.first < at or part.end > work.end or (part.first > at and not work.answers):
            raise BadOpening(f"An output is of the positions {part.first} to {part.end}, after {at}.")
        at = part.end
    if at < work.end and not work.answers:
        raise BadOpening(f"The outputs end at {at}, the inputs at {work.end}.")
    if work.left_padding and (len(work.left_padding) != work.rows or min(work.left_padding) < 0):
        raise BadOpening("The padding does not fit the rows.")


def _check_part(part: Part, work: EndWork, codecs: Sequence[str]) -> None:
    widths = {IDS: 1, LOGITS: part.width, work.codec: work.hidden_size}
    if part.codec not in codecs or part.width != widths.get(part.codec) or min(part.num_positions, part.width) < 1:
        raise BadOpening(f"A part in the codec {part.codec[:16]!r} has another width than its codec.")
    shape = (work.rows, part.num_positions, part.width)
    if memoryview(part.payload).nbytes != payload_bytes(part.codec, shape):
        raise BadOpening(f"A part of {part.num_positions} positions has another size than its shape.")


def _entering(ends: LoadedEnds, work: EndWork, span: Span) -> torch.Tensor:
    """Return what entered the first block, ``[rows, positions, hidden]`` float32 from position 0 on."""
    if not work.embeds:
        return _hidden(work.inputs, work, span.device)
    assert ends.entry is not None
    ids = ids_from_payload(work.inputs.payload, (work.rows, work.inputs.num_positions))
    return ends.entry.embed(ids, 0, work.left_padding).to(device=span.device, dtype=torch.float32)


def _hidden(part: Part, work: EndWork, device: torch.device) -> torch.Tensor:
    shape = (work.rows, part.num_positions, work.hidden_size)
    return from_payload(part.payload, shape, work.codec, dtype=torch.float32, device=device)


def _answer_errors(head: Ends, reference: torch.Tensor, work: EndWork) -> list[list[float]]:
    """Return the errors of each row's answers, padding left out; ``reference`` is of the chunk's positions."""
    rows: list[list[float]] = [[] for _ in range(work.rows)]
    padding = work.left_padding or (0,) * work.rows
    for part in work.outputs:
        for position, errors in _errors_by_position(head, reference, part, work):
            for row, error in enumerate(errors):
                if position >= padding[row]:
                    rows[row].append(error)
    return rows


def _errors_by_position(
    head: Ends, reference: torch.Tensor, part: Part, work: EndWork
) -> Iterator[tuple[int, list[float]]]:
    """Yield each position of a part, and the errors of its rows."""
    shape = (work.rows, part.num_positions, part.width)
    at_once = max(1, _POSITIONS_AT_ONCE // work.rows)
    if part.codec == IDS:
        ids, logits = ids_from_payload(part.payload, shape), None
    else:
        ids, logits = logits_from_payload(part.payload, shape)
    is_short = logits is not None and part.width < min(work.top, head.vocab_size)
    for first in range(0, part.num_positions, at_once):
        look()
        last = min(first + at_once, part.num_positions)
        offset = part.first - work.first
        due = head.logits(reference[:, offset + first : offset + last]).cpu().flatten(0, 1)
        its = ids[:, first:last].flatten(0, 1)
        if logits is None:
            errors = greedy_errors(due, its.squeeze(1))
        else:
            errors = logit_errors(due, its, logits[:, first:last].flatten(0, 1))
        if is_short:  # Whoever keeps logits back decides what is sampled.
            errors = errors.masked_fill(~errors.isnan(), math.inf)
        by_position = errors.reshape(work.rows, last - first).T.tolist()
        yield from zip(range(part.first + first, part.first + last), by_position, strict=True)
