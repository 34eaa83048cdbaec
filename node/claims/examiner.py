"""Run verified evidence again on the blocks of one model, whose weights are at hand, and say what follows.

    evidence ──rerun──> work ──check──> pass, neither ──────────────────────────> refuted, inconclusive
                                └─────> fail ──control──> an honest server passes ──> upheld
                                                            └─ or fails, too ───────> inconclusive

Whoever accuses may have made the inputs, so that nobody could have computed them well: see ``node.check.control``.
The blocks are loaded in float32 for one examination and let go: it takes memory for them and for the session, bounded
together and by half of what is free, and where that is not enough this node cannot tell. Loads and computes for seconds
to minutes in a thread of its own, at the lowest priority that the system gives a thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dht.claim import Claim
from dht.verdict import Opinion
from dht.work import MAX_ERROR_PPM
from node.calibrations.current import Current
from node.check.calibration import Calibration
from node.check.calibration_file import read_calibration, shipped_calibration
from node.check.check import CheckResult, Verdict, Work, check_span
from node.check.control import NOBODY_COULD, control_of
from node.check.evidence import Evidence
from node.check.patience import PatientThread
from node.check.reference import HELD_IN, reference_span
from node.claims.findings import Finding, cannot_tell
from node.claims.rerun import work_of
from node.errors import BadCalibration, BadOpening, CannotCheck, NodeError
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes

logger = logging.getLogger(__name__)

MAX_EXAMINATION_BYTES = 4 * 2**30
"""Memory that an examination may take, weights included."""
SHARE_OF_FREE = 2
"""It takes one part in so many of the memory that is free: whoever accuses must not be able to end a node."""

CPU = torch.device("cpu")

_OPINIONS = {
    Verdict.PASS: Opinion.REFUTED,
    Verdict.FAIL: Opinion.UPHELD,
    Verdict.INCONCLUSIVE: Opinion.INCONCLUSIVE,
}


@dataclass(frozen=True)
class CheckpointExaminer:
    """Examines claims about one model; an ``Examine``."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    """None: nobody can say what is honest, so this node cannot tell."""
    device: torch.device = CPU
    """Not a GPU, where work that is being done may need all memory."""
    max_bytes: int = MAX_EXAMINATION_BYTES
    _thread: PatientThread = field(
        default_factory=lambda: PatientThread("efedllm-examiner"), init=False, repr=False, compare=False
    )

    def __call__(self, evidence: Evidence, claim: Claim) -> Finding:
        """Examine; a node that cannot says so.

        Raises:
            CancelledError: that of ``concurrent.futures``: nobody waits for it any more (``node.check.patience``).
        """
        receipt = claim.work
        if self.calibration is None:
            return cannot_tell("No calibration of the model is at hand.")
        if receipt.manifest != self.checkpoint.manifest32:
            return cannot_tell("It is about another model than this node has.")
        if evidence.adapter or evidence.weights not in HELD_IN:
            return cannot_tell("The weights are held in a way that this node does not know.")
        try:
            return self._thread.run(self._run, evidence, receipt.start, receipt.end, self.calibration)
        except (CannotCheck, BadOpening) as error:
            return cannot_tell(str(error))
        except (NodeError, OSError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError without memory.
            return cannot_tell(f"The blocks could not be run: {error}")

    def _run(self, evidence: Evidence, start: int, end: int, calibration: Calibration) -> Finding:
        work = work_of(evidence, calibration.hidden_size)
        allowed = min(self.max_bytes, free_bytes(CPU) // SHARE_OF_FREE)
        room = allowed - 2 * self.checkpoint.span_bytes(start, end, torch.float32)  # As stored, and in float32.
        if room <= 0:
            return cannot_tell("The blocks take more memory than an examination may.")

        def check(checked: Work) -> CheckResult:
            span = reference_span(self.checkpoint, evidence.weights, start, end, self.device)
            return check_span(span, checked, calibration, evidence.weights, max_bytes=room)

        result = check(work)
        if result.verdict is Verdict.FAIL:
            control = control_of(self.checkpoint, evidence.weights, start, end, work, max_bytes=room)
            if check(control).verdict is not Verdict.PASS:
                return cannot_tell(NOBODY_COULD)
        return finding_of(result)


class CurrentExaminer:
    """Examines claims by the calibration that the node has when it is asked; an ``Examine``.

    Args:
        examiner: how it examines.
        current: by what.
    """

    def __init__(self, examiner: CheckpointExaminer, current: Current) -> None:
        self._examiner = examiner
        self._current = current

    def __call__(self, evidence: Evidence, claim: Claim) -> Finding:
        """Examine; a node that cannot says so."""
        calibration = self._current.calibration
        if calibration is not self._examiner.calibration:
            self._examiner = replace(self._examiner, calibration=calibration)
        return self._examiner(evidence, claim)


def examiner_of(checkpoint: Checkpoint, calibration: Path | None = None) -> CheckpointExaminer:
    """Return who examines claims about a model; reads files.

    Args:
        checkpoint: the model.
        calibration: file by which is judged; None: the one that comes with this package, if there is one.

    Raises:
        BadCalibration: the file that was named is none, or of another model.
    """
    if calibration is not None:
        return CheckpointExaminer(checkpoint, read_calibration(calibration, checkpoint.manifest32))
    shipped = None
    try:
        shipped = shipped_calibration(checkpoint.manifest32)
    except BadCalibration as error:  # A node serves without it; it just cannot tell.
        logger.warning("claims cannot be examined here: %s", error)
    return CheckpointExaminer(checkpoint, shipped)


def finding_of(result: CheckResult) -> Finding:
    """Say what a check comes to."""
    median = result.statistics.median if result.statistics is not None else 0.0
    error_ppm = min(MAX_ERROR_PPM, int(median * 1e6)) if median < MAX_ERROR_PPM else MAX_ERROR_PPM
    return Finding(_OPINIONS[result.verdict], error_ppm, result.reason)
