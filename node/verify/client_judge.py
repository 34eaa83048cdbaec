"""The judge of a client that has its model's weights: where they lie, and which calibration it judges by.

A client fetches no weights to judge; whoever wants that runs a verifier. Reads files: in an event loop, through
``asyncio.to_thread``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from node.check.calibration_file import find_calibration
from node.errors import UserError
from node.model.checkpoint import Checkpoint
from node.verify.span_judge import SpanJudge

logger = logging.getLogger("efedllm")


def judge_for_client(
    model: str, revision: str | None, calibration: Path | None, home: Path, tell: Callable[[str], None] = logger.warning
) -> SpanJudge | None:
    """Return a judge for a client of a model; None: the weights are not on this machine, or it has no calibration.

    Args:
        model: directory, hub id or ``embedded``.
        revision: on the hub.
        calibration: a file; None: the one that this package has for the model.
        home: where digests of files are remembered.
        tell: told once why something is not judged.

    Raises:
        UserError: there is no such model.
        BadCalibration: the file is no calibration of that model.
    """
    checkpoint = Checkpoint.open(model, revision=revision, home=home)
    if not checkpoint.is_local:
        if calibration is not None:
            raise UserError(
                f"{model} is on a hub, and a client fetches no blocks to judge audits: pass the directory of a copy, "
                "or leave out --calibration."
            )
        logger.info("audits are not judged: the weights of %s are not on this machine", model)
        return None
    found = find_calibration(checkpoint.manifest32, calibration)
    if found is None:
        logger.info("audits are not judged: there is no calibration of %s", model)
        return None
    return SpanJudge(checkpoint, found, tell=tell)
