"""Judges what audits have opened: runs the span again on the declared weights, and compares with what came out.

    opening ──> the span's weights, in float32 ──> node.check ──> pass, fail, neither
                 (one span at a time)                  └─ neither, or pass ──> the server's pool

Works in a thread of its own that gives way to everything else, one opening after the other. Whatever it cannot do it
says once, and has not judged: nobody is at fault for that. Ends of clients without weights (token ids in, logits out)
are not run again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from dht.work import MAX_ERROR_PPM
from node.check.calibration import Calibration
from node.check.check import MAX_CHECK_BYTES, CheckResult, Piece, Verdict, Work, check_span
from node.check.control import NOBODY_COULD, control_of
from node.check.reference import DTYPES, reference_span
from node.check.statistics import ChunkStatistics
from node.client.audit_book import Measured, Outcome
from node.client.audit_book import Verdict as Ruling
from node.client.audit_opening import Given, Opening
from node.client.route import Stage
from node.errors import CannotCheck, NodeError
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes
from node.model.span import Span
from node.verify.ratio_pools import RatioPools

logger = logging.getLogger("efedllm")

PPM = 10**6
_SHARE_OF_FREE = 2
"""Without a bound, a judge takes one part in so many of the memory that is free."""
_CPU = torch.device("cpu")
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
        self._max_bytes = max_bytes
        self._tell = tell
        self._has_told = False
        self._pools = RatioPools()
        self._loaded: tuple[tuple[str, int, int], Span] | None = None
        self._thread = ThreadPoolExecutor(1, "efedllm-judge", initializer=_give_way)

    def __call__(self, opening: Opening) -> Ruling:
        """Judge an opening; waits for those before it."""
        return self._thread.submit(self._judge, opening).result()

    def _judge(self, opening: Opening) -> Ruling:
        try:
            result = self._check(opening)
        except NodeError as error:
            self._say_once(str(error))
            return Ruling(Outcome.INCONCLUSIVE, f"it could not be judged: {error}")
        measured = _measured(result.statistics, self._calibration.digest) if result.statistics is not None else None
        if result.verdict is Verdict.FAIL:
            return Ruling(Outcome.FAIL, result.reason, measured, shows_itself=True)
        if reason := self._pool(opening, result):
            return Ruling(Outcome.FAIL, reason, measured)
        return Ruling(_OUTCOMES[result.verdict], result.reason, measured)

    def _check(self, opening: Opening) -> CheckResult:
        if opening.manifest != self._calibration.manifest:
            raise CannotCheck("It is of another model than the calibration.")
        work, stage = work_of(opening), opening.stage
        # Asked before anything is loaded: what the calibration says nothing of is not worth it.
        self._calibration.standard(stage.weights, work.codec, stage.start, stage.end)
        result = self._held_against(stage, work)
        if result.verdict is not Verdict.FAIL:
            return result
        self._loaded = None  # There is room for one.
        room = self._allowed_bytes() - 2 * self._checkpoint.span_bytes(stage.start, stage.end, torch.float32)
        blocks = (stage.start, stage.end)
        control = control_of(self._checkpoint, stage.weights, *blocks, work, max_bytes=min(room, MAX_CHECK_BYTES))
        if self._held_against(stage, control).verdict is Verdict.PASS:
            return result
        return CheckResult(Verdict.INCONCLUSIVE, None, math.nan, NOBODY_COULD)

    def _held_against(self, stage: Stage, work: Work) -> CheckResult:
        span, left_bytes = self._span(stage.weights, stage.start, stage.end)
        return check_span(span, work, self._calibration, stage.weights, max_bytes=min(left_bytes, MAX_CHECK_BYTES))

    def _span(self, held_in: str, start: int, end: int) -> tuple[Span, int]:
        """Return the blocks as they should be, and the memory that is left for a check."""
        place = (held_in, start, end)
        stored = DTYPES.get(held_in, torch.bfloat16)
        weights_bytes = self._checkpoint.span_bytes(start, end, torch.float32)
        loading_bytes = self._checkpoint.span_bytes(start, end, stored)
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = None  # There is room for one.
            allowed_bytes = self._allowed_bytes()
            if weights_bytes + loading_bytes > allowed_bytes:
                raise CannotCheck(
                    f"To load blocks {start}:{end} takes {weights_bytes + loading_bytes:,} bytes, more than the "
                    f"{allowed_bytes:,} that a judge may take."
                )
            self._loaded = place, reference_span(self._checkpoint, held_in, start, end, _CPU)
            return self._loaded[1], allowed_bytes - weights_bytes
        bound = self._max_bytes
        return self._loaded[1], self._allowed_bytes() if bound is None else bound - weights_bytes

    def _allowed_bytes(self) -> int:
        return self._max_bytes if self._max_bytes is not None else free_bytes(_CPU) // _SHARE_OF_FREE

    def _pool(self, opening: Opening, result: CheckResult) -> str:
        stage = opening.stage
        kind = (stage.peer_id, stage.start, stage.end, opening.profile)
        standard = self._calibration.standard(stage.weights, opening.codec, stage.start, stage.end)
        return self._pools.add(kind, result.ratio, standard.pooled_limit)

    def _say_once(self, why: str) -> None:
        if not self._has_told:
            self._has_told = True
            self._tell(f"Not every audit is judged here: {why}")


def work_of(opening: Opening) -> Work:
    """Return what an opening shows, as the check takes it.

    Raises:
        CannotCheck: ids or logits travelled there.
    """
    given = (opening.inputs, *opening.outputs)
    if any(part.codec != opening.codec for part in given):
        raise CannotCheck("The ends of a client without weights are not run again.")
    rows, _, hidden_size = opening.inputs.shape
    inputs, *outputs = (_piece(part) for part in given)
    return Work(rows, hidden_size, opening.codec, (inputs,), tuple(outputs), opening.left_padding)


def _piece(given: Given) -> Piece:
    return Piece(given.payload, given.shape[1])


def _measured(statistics: ChunkStatistics, calibration: bytes) -> Measured:
    median, upper, largest = (_ppm(error) for error in (statistics.median, statistics.high, statistics.largest))
    return Measured(median, upper, largest, calibration)


def _ppm(error: float) -> int:
    return MAX_ERROR_PPM if not math.isfinite(error) else min(MAX_ERROR_PPM, round(error * PPM))


def _give_way() -> None:
    """Let this thread, and those that torch starts for it, compute when nobody else wants to."""
    if sys.platform == "linux":  # Elsewhere a thread's id is no number that a priority can be given to.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
