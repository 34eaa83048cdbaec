"""A judge of one model whose calibration may come while it is there, or be replaced: a span judge for each.

Called in threads, several at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from node.calibrations.current import Current
from node.check.calibration import Calibration
from node.client.audit_book import Outcome, Verdict
from node.client.audit_opening import Opening
from node.model.checkpoint import Checkpoint
from node.verify.span_judge import SpanJudge

logger = logging.getLogger("efedllm")

NO_CALIBRATION = "it is opened as it was signed; no calibration of the model says yet what is honest"


class ModelJudge:
    """Judges by the calibration that there is; call it with an opening.

    Args:
        checkpoint: the model.
        current: by what is judged.
        max_bytes: memory that it may take; None: half of what is free.
        tell: told once, in words, why it does not judge what it cannot.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        current: Current,
        *,
        max_bytes: int | None = None,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._checkpoint = checkpoint
        self._current = current
        self._max_bytes = max_bytes
        self._tell = tell
        self._choosing = threading.Lock()
        self._judge: tuple[Calibration, SpanJudge] | None = None

    def __call__(self, opening: Opening) -> Verdict:
        """Judge an opening; without a calibration nobody is at fault."""
        judge = self._judge_now()
        return judge(opening) if judge is not None else Verdict(Outcome.INCONCLUSIVE, NO_CALIBRATION)

    def judge_alone(self, opening: Opening) -> Verdict:
        """Judge an opening without regard to others of its server, which may be made up where a stranger sends them."""
        judge = self._judge_now()
        return judge.judge_alone(opening) if judge is not None else Verdict(Outcome.INCONCLUSIVE, NO_CALIBRATION)

    def _judge_now(self) -> SpanJudge | None:
        with self._choosing:
            calibration = self._current.calibration
            if calibration is None:
                return None
            if self._judge is None or self._judge[0] is not calibration:
                # What was pooled of a server's chunks is a multiple of what the other one calls honest: it goes, too.
                judge = SpanJudge(self._checkpoint, calibration, max_bytes=self._max_bytes, tell=self._tell)
                self._judge = calibration, judge
            return self._judge[1]
