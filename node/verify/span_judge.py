"""Judges what audits have opened: runs the span again on the declared weights, and compares with what came out.

    opening ──> the span's weights, in float32 ──> node.check ──> pass, fail, neither
                 (one span at a time)                  └─ neither, or pass ──> the server's pool

Ends of clients without weights are run again with it: the embedding where token ids went in, the head where logits or
tokens came out. Works in a thread of its own that gives way to everything else, one opening after the other. Whatever
it cannot do it says once, and has not judged: nobody is at fault for that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

from dht.work import MAX_ERROR_PPM
from node.check.calibration import Calibration, Standard
from node.check.check import MAX_CHECK_BYTES, CheckResult, Piece, Verdict, Work, check_span
from node.check.control import NOBODY_COULD, control_of
from node.check.end_check import EndWork, LoadedEnds, Part, check_ends, check_sizes
from node.check.patience import PatientThread
from node.check.reference import DTYPES
from node.check.statistics import ChunkStatistics
from node.client.audit_book import Measured, Outcome
from node.client.audit_book import Verdict as Ruling
from node.client.audit_opening import Given, Opening
from node.client.route import Stage
from node.errors import CannotCheck, NodeError
from node.model.checkpoint import Checkpoint
from node.model.sampling import Sampling
from node.verify.ratio_pools import RatioPools
from node.verify.references import References
from node.wire import IDS, LOGITS

logger = logging.getLogger("efedllm")

PPM = 10**6
_OUTCOMES = {Verdict.PASS: Outcome.PASS, Verdict.FAIL: Outcome.FAIL, Verdict.INCONCLUSIVE: Outcome.INCONCLUSIVE}


class SpanJudge:
    """A judge of one model's audits; call it with an opening. It is given to a client.

    Args:
        checkpoint: the model; its weights are read, and fetched if they have to be, when they are needed.
        calibration: of the model.
        max_bytes: memory that it may take; None: half of what is free.
        tell: told once, in words, why it does not judge what it cannot.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration,
        *,
        max_bytes: int | None = None,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._checkpoint = checkpoint
        self._calibration = calibration
        self._references = References(checkpoint, max_bytes)
        self._tell = tell
        self._has_told = False
        self._pools = RatioPools()
        self._thread = PatientThread("efedllm-judge")

    def __call__(self, opening: Opening) -> Ruling:
        """Judge an opening; waits for those before it.

        Raises:
            CancelledError: that of ``concurrent.futures``: nobody waits for it any more (``node.check.patience``).
        """
        return self._thread.run(self._judge, opening, is_pooled=True)

    def judge_alone(self, opening: Opening) -> Ruling:
        """Judge an opening without regard to others of its server, which may be made up where a stranger sends them.

        Raises as ``__call__``.
        """
        return self._thread.run(self._judge, opening, is_pooled=False)

    def _judge(self, opening: Opening, *, is_pooled: bool) -> Ruling:
        try:
            result = self._check(opening)
        except (NodeError, OSError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError without memory.
            why = str(error) or type(error).__name__
            self._say_once(why)
            return Ruling(Outcome.INCONCLUSIVE, f"it could not be judged: {why}")
        measured = _measured(result.statistics, self._calibration.digest) if result.statistics is not None else None
        if result.verdict is Verdict.FAIL:
            return Ruling(Outcome.FAIL, result.reason, measured, shows_itself=True, was_run=True)
        if is_pooled and (reason := self._pool(opening, result)):
            return Ruling(Outcome.FAIL, reason, measured, was_run=True)
        return Ruling(_OUTCOMES[result.verdict], result.reason, measured, was_run=True)

    def _check(self, opening: Opening) -> CheckResult:
        if opening.manifest != self._calibration.manifest:
            raise CannotCheck("It is of another model than the calibration.")
        # Asked before anything is loaded: what the calibration says nothing of is not worth it.
        self._standard(opening)
        if is_at_an_end(opening):
            return self._check_ends(opening)
        work, stage, references = work_of(opening), opening.stage, self._references
        result = self._held_against(stage, work)
        if result.verdict is not Verdict.FAIL:
            return result
        references.let_go()  # There is room for one.
        room = references.left_bytes - 2 * self._checkpoint.span_bytes(stage.start, stage.end, torch.float32)
        blocks = (stage.start, stage.end)
        control = control_of(self._checkpoint, stage.weights, *blocks, work, max_bytes=min(room, MAX_CHECK_BYTES))
        if self._held_against(stage, control).verdict is Verdict.PASS:
            return result
        return CheckResult(Verdict.INCONCLUSIVE, None, math.nan, NOBODY_COULD)

    def _held_against(self, stage: Stage, work: Work) -> CheckResult:
        span = self._references.span(stage.weights, stage.start, stage.end)
        max_bytes = min(self._references.left_bytes, MAX_CHECK_BYTES)
        return check_span(span, work, self._calibration, stage.weights, max_bytes=max_bytes)

    def _check_ends(self, opening: Opening) -> CheckResult:
        work, stage, references = end_work_of(opening, self._calibration.hidden_size), opening.stage, self._references
        check_sizes(work)
        entry = references.entry(_dtype_of(opening)) if work.embeds else None
        ends = LoadedEnds(entry, references.exit() if work.answers else None)
        span = references.span(stage.weights, stage.start, stage.end)
        max_bytes = min(references.left_bytes, MAX_CHECK_BYTES)
        return check_ends(span, ends, work, self._calibration, stage.weights, max_bytes=max_bytes)

    def _standard(self, opening: Opening) -> Standard:
        stage, calibration = opening.stage, self._calibration
        if opening.outputs[0].codec in (IDS, LOGITS):
            return calibration.answer_standard(stage.weights, opening.codec, stage.start)
        return calibration.standard(stage.weights, opening.codec, stage.start, stage.end)

    def _pool(self, opening: Opening, result: CheckResult) -> str:
        stage = opening.stage
        is_answer = opening.outputs[0].codec in (IDS, LOGITS)
        kind = (stage.peer_id, stage.start, stage.end, opening.profile, is_answer)
        return self._pools.add(kind, result.ratio, self._standard(opening).pooled_limit)

    def _say_once(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"Not every audit is judged here: {why}")


def is_at_an_end(opening: Opening) -> bool:
    """Say whether token ids went in, or logits or ids came out."""
    return any(part.codec in (IDS, LOGITS) for part in (opening.inputs, *opening.outputs))


def work_of(opening: Opening) -> Work:
    """Return what an opening shows of a stage that takes and gives hidden states, as the check takes it.

    Raises:
        CannotCheck: they are in another codec than the session's.
    """
    given = (opening.inputs, *opening.outputs)
    if any(part.codec != opening.codec for part in given):
        raise CannotCheck("Hidden states are in another codec than the session's.")
    rows, _, hidden_size = opening.inputs.shape
    inputs, *outputs = (Piece(part.payload, part.shape[1]) for part in given)
    return Work(rows, hidden_size, opening.codec, (inputs,), tuple(outputs), opening.left_padding)


def end_work_of(opening: Opening, hidden_size: int) -> EndWork:
    """Return what an opening shows of a stage that embeds or answers, as the check takes it."""
    terms = opening.thin
    sampling = terms.sampling if terms is not None else None
    return EndWork(
        rows=opening.inputs.shape[0],
        hidden_size=hidden_size,
        codec=opening.codec,
        first=opening.first,
        inputs=_part(opening.inputs),
        outputs=tuple(map(_part, opening.outputs)),
        left_padding=opening.left_padding,
        top=terms.top if terms is not None else 0,
        is_greedy=sampling is None or Sampling(*sampling).takes_likeliest,
    )


def _part(given: Given) -> Part:
    _, num_positions, width = given.shape
    return Part(given.first, given.codec, num_positions, width, given.payload)


def _dtype_of(opening: Opening) -> torch.dtype:
    """Return what a server embeds in: what it holds its weights in, or computes in where these are quantised.

    Raises:
        CannotCheck: it says neither.
    """
    dtype = DTYPES.get(opening.stage.weights) or DTYPES.get(opening.dtype)
    if dtype is None:
        raise CannotCheck("The server does not say in which dtype it embeds.")
    return dtype


def _measured(statistics: ChunkStatistics, calibration: bytes) -> Measured:
    median, upper, largest = (_ppm(error) for error in (statistics.median, statistics.high, statistics.largest))
    return Measured(median, upper, largest, calibration)


def _ppm(error: float) -> int:
    return MAX_ERROR_PPM if not math.isfinite(error) else min(MAX_ERROR_PPM, round(error * PPM))
