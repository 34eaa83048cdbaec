"""The check of one chunk: run the span once more over everything that went in, and compare what came out.

One forward pass in float32 over the true inputs of positions 0 to the chunk's end (teacher-forced: a server that
decoded them one by one gets the same answer but for rounding), on the weights that the server has declared. What it
sent is compared position by position, and three statistics say pass, fail, or neither.

    inputs   |............ 0 to end ............|      as they went over the wire
    outputs                         |first..end |      likewise; the reference is rounded as the codec does it, too

The bytes may be anybody's: their sizes are checked before anything is allocated. Whether they are what was signed is
``node.check.evidence``'s to say. Runs in the compute thread, or in ``asyncio.to_thread``.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from node.check.calibration import Calibration, Standard
from node.check.patience import look
from node.check.statistics import ChunkStatistics, pooled_ratio, summarise
from node.errors import BadOpening, CannotCheck
from node.model.fingerprint import increment_errors
from node.model.span import Span
from node.model.tensors import BLOCK, from_payload, to_payload
from node.wire import CODECS, Payload, payload_bytes

WINDOW = 64
"""Positions of a chunk at most."""
MAX_CHECK_BYTES = 2**30
"""Memory that a check may take beside the weights, by default."""

UNDECIDED = 1e-5
"""What honest float32 differs by at most, as a part of a number and of what is typical of its position."""
_COPIES = 12
"""Hidden states of a step that are in memory at once beside the cache, at most: in the blocks, and in float64."""


class Verdict(enum.StrEnum):
    """What a check says of a chunk."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """Nobody is punished; check another chunk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The payload of one step, or of the part of a step that lies in one window."""

    payload: Payload
    """``[rows, num_positions, hidden]`` in the session's codec."""
    num_positions: int


@dataclass(frozen=True, slots=True)
class Work:
    """One chunk of a session at one stage, and all that went in before it."""

    rows: int
    hidden_size: int
    codec: str
    inputs: tuple[Piece, ...]
    """Of positions 0 to the end of the chunk, in order: the history as the step saw it, cropped and selected."""
    outputs: tuple[Piece, ...]
    """Of the chunk's positions."""
    left_padding: tuple[int, ...] = ()
    """Padding positions at the start of each row; empty for none."""

    @property
    def end(self) -> int:
        """One past the chunk's last position."""
        return sum(piece.num_positions for piece in self.inputs)

    @property
    def first(self) -> int:
        """The chunk's first position."""
        return self.end - sum(piece.num_positions for piece in self.outputs)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found."""

    verdict: Verdict
    statistics: ChunkStatistics | None
    """Of the worst row in each; None: nothing could be compared."""
    ratio: float
    """The median as a multiple of the honest mean, for the pooled test; NaN where nothing was compared."""
    reason: str
    """What decided, in words."""


def check_span(
    span: Span, work: Work, calibration: Calibration, held_in: str, *, max_bytes: int = MAX_CHECK_BYTES
) -> CheckResult:
    """Check one chunk.

    Args:
        span: the blocks that the server ran, in float32 on the weights that it declares (``node.check.reference``).
        work: what went in and what came out.
        calibration: of the model.
        held_in: what the server declares that its weights are held in.
        max_bytes: memory to take beside the weights, at most.

    Raises:
        BadOpening: sizes, rows or positions of ``work`` do not fit together.
        CannotCheck: the calibration says nothing of such a span, or it takes more memory than allowed.
    """
    standard = calibration.standard(held_in, work.codec, span.start, span.end)
    if work.hidden_size != calibration.hidden_size:
        raise BadOpening(f"The opening has {work.hidden_size} channels, the model {calibration.hidden_size}.")
    check_sizes(work)
    check_memory(bytes_needed(span, work.rows, work.end, work.hidden_size), work.end, max_bytes)
    inputs, reference = run_reference(span, read_pieces(work.inputs, work, span.device), work.first, work.left_padding)
    outputs = read_pieces(work.outputs, work, span.device)
    skipped = padding_within(work.first, work.rows, work.left_padding)
    return judge(rows_errors(inputs, outputs, reference, work.codec, standard, skipped), standard)


def check_sizes(work: Work) -> None:
    """Pass if sizes, rows and positions fit together; reads no payload.

    Raises:
        BadOpening: they do not.
    """
    if work.codec not in CODECS:
        raise BadOpening(f"There is no codec {work.codec[:16]!r}.")
    if work.rows < 1 or work.hidden_size < 1 or not work.inputs or not work.outputs:
        raise BadOpening("The opening holds no rows, no channels or no positions.")
    for piece in (*work.inputs, *work.outputs):
        shape = (work.rows, piece.num_positions, work.hidden_size)
        if piece.num_positions < 1 or memoryview(piece.payload).nbytes != payload_bytes(work.codec, shape):
            raise BadOpening(f"A piece of {piece.num_positions} positions has another size than its shape.")
    if work.first < 0 or work.end - work.first > WINDOW:
        raise BadOpening(f"The outputs are of {work.end - work.first} positions, the inputs of {work.end}.")
    if work.left_padding and (len(work.left_padding) != work.rows or min(work.left_padding) < 0):
        raise BadOpening("The padding does not fit the rows.")


def bytes_needed(span: Span, rows: int, end: int, hidden_size: int) -> int:
    """Return the memory that a run over the positions up to ``end`` takes beside the weights, about."""
    positions = rows * (end + span.state_positions)
    return positions * (span.cache_bytes_per_position + 4 * hidden_size * _COPIES)


def check_memory(needed: int, end: int, max_bytes: int) -> None:
    """Pass if a check of ``end`` positions may take as much memory as it needs.

    Raises:
        CannotCheck: it may not.
    """
    if needed > max_bytes:
        raise CannotCheck(f"A check of {end} positions takes {needed:,} bytes, more than the {max_bytes:,} allowed.")


def run_reference(
    span: Span, inputs: torch.Tensor, first: int, left_padding: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``span`` over what went in; return the chunk's inputs and what should have come out for them.

    Args:
        span: in float32.
        inputs: ``[rows, positions, hidden]`` float32, from position 0 on.
        first: first position of the chunk.
        left_padding: of each row; empty for none.

    Returns:
        ``[rows, positions, hidden]`` float32 both; what should have come out has not gone through the codec.

    Raises:
        CancelledError: as ``node.check.patience.look``.
    """
    assert span.dtype == torch.float32
    rows, end, _ = inputs.shape
    padding = torch.tensor(left_padding, device=span.device) if any(left_padding) else None
    with span.looking(look):
        return inputs[:, first:], span.forward(inputs, span.new_cache(end, rows), padding)[:, first:]


def padding_within(first: int, rows: int, left_padding: Sequence[int]) -> list[int]:
    """Return how many positions of each row are padding, from ``first`` on."""
    return [max(0, padding - first) for padding in left_padding] or [0] * rows


def nearest_arrival(reference: torch.Tensor, outputs: torch.Tensor, codec: str) -> torch.Tensor:
    """Return what may arrive of ``reference`` behind the wire, where there is a choice that which ``outputs`` has.

    A number that lies between two of the codec goes to one or the other by a difference that float32 cannot tell. Once
    in some thousand positions that is a whole step of the codec in one channel, much more than anything else that
    honest float32 differs by.

    Args:
        reference: ``[rows, positions, hidden]`` float32, before the codec.
        outputs: likewise, as they arrived.
        codec: of the session.
    """
    if codec == "float32":
        return reference
    typical = reference.square().mean(dim=-1, keepdim=True).sqrt()
    room = UNDECIDED * (reference.abs() + typical)
    rounded = through_codec(reference, codec)
    below, above = rounded, rounded
    for shift in _shifts(reference, codec):
        arrival = through_codec(reference + shift * room, codec)
        below, above = torch.minimum(below, arrival), torch.maximum(above, arrival)
    return outputs.clamp(below, above).where(torch.isfinite(outputs), rounded)


def _shifts(reference: torch.Tensor, codec: str) -> Iterator[torch.Tensor]:
    """Yield what to add to the numbers, in units of the room that they have, to find where they may go.

    In int8 the largest number of a block decides the scale of all, so it moves by itself.
    """
    signs = (-1, 0, 1)
    if codec != "int8":
        yield from (torch.full_like(reference, sign) for sign in signs if sign)
        return
    hidden_size = reference.shape[-1]
    blocks = pad(reference.abs(), (0, -hidden_size % BLOCK)).unflatten(-1, (-1, BLOCK))
    is_largest = (blocks == blocks.amax(dim=-1, keepdim=True)).flatten(-2)[..., :hidden_size]
    for of_scale, of_others in itertools.product(signs, signs):
        if of_scale or of_others:
            others = torch.full_like(reference, of_others)
            yield others.masked_fill(is_largest, of_scale)


def through_codec(hidden: torch.Tensor, codec: str) -> torch.Tensor:
    """Return ``hidden`` ``[rows, positions, hidden]`` as it arrives behind the wire, in float32."""
    payload, shape = to_payload(hidden, codec), tuple(hidden.shape)
    return from_payload(payload, shape, codec, dtype=torch.float32, device=hidden.device)


def judge(rows: Sequence[Sequence[float]], standard: Standard) -> CheckResult:
    """Judge a chunk by its positions' errors, row by row; the worst row counts in every statistic.

    Args:
        rows: errors of each row's positions, padding left out; rows without positions are passed over.
        standard: of the span.
    """
    summaries = [summarise(errors) for errors in rows if errors]
    if not summaries:
        return CheckResult(Verdict.INCONCLUSIVE, None, math.nan, "every position is padding")
    if any(math.isnan(error) for errors in rows for error in errors):
        return CheckResult(Verdict.INCONCLUSIVE, None, math.nan, "the span gives no numbers for what went in")
    worst = summaries[0]
    for summary in summaries[1:]:
        worst = worst.worst_with(summary)
    verdict, reason = Verdict.PASS, "within what is honest"
    values = (worst.median, worst.high, worst.largest)
    names = ("median", "upper tenth", "largest error")
    for name, value, limit in zip(names, values, standard.limits(worst.num_positions), strict=True):
        if value > limit.fails:
            reason = f"the {name} {value:.2g} is above {limit.fails:.2g}"
            return CheckResult(Verdict.FAIL, worst, standard.ratio(worst), reason)
        if not value < limit.passes:
            verdict, reason = Verdict.INCONCLUSIVE, f"the {name} {value:.2g} is not below {limit.passes:.2g}"
    return CheckResult(verdict, worst, standard.ratio(worst), reason)


def judge_pool(ratios: Sequence[float], pooled_limit: float) -> Verdict:
    """Judge one server by its chunks' ratios together; ``pooled_limit`` is their standards', the largest of several.

    It never passes anyone that single chunks have not passed: it says fail, or nothing.
    """
    ratio = pooled_ratio(ratios)
    return Verdict.FAIL if ratio is not None and ratio > pooled_limit else Verdict.INCONCLUSIVE


def read_pieces(pieces: Sequence[Piece], work: Work, device: torch.device) -> torch.Tensor:
    """Return ``[rows, positions, hidden]`` float32 of pieces whose sizes have been checked."""
    parts = [
        from_payload(
            piece.payload,
            (work.rows, piece.num_positions, work.hidden_size),
            work.codec,
            dtype=torch.float32,
            device=device,
        )
        for piece in pieces
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def rows_errors(
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    reference: torch.Tensor,
    codec: str,
    standard: Standard,
    skipped: Sequence[int],
) -> list[list[float]]:
    """Return the errors of each row's positions, without as many at its start as are padding.

    Args:
        inputs: ``[rows, positions, hidden]`` float32 of the chunk, as they arrived.
        outputs: likewise.
        reference: what should have come out, before the codec.
        codec: of the outputs.
        standard: of the span.
        skipped: positions of each row.
    """
    scales = standard.scales.to(inputs.device)
    due = nearest_arrival(reference, outputs, codec)
    return [
        increment_errors(inputs[row, begin:], outputs[row, begin:], due[row, begin:], scales).tolist()
        for row, begin in enumerate(skipped)
    ]
