"""The judge of a client that has its model's weights: where they lie, and which calibration it judges by.

It looks for a calibration that it has not been given while the client runs; until it has one, nothing is judged.

A client fetches no weights to judge; whoever wants that runs a verifier. Reads files: in an event loop, through
``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dht.swarm import Swarm
from node.calibrations.current import Current
from node.calibrations.seeker import CalibrationSeeker
from node.check.calibration_file import find_calibration
from node.client.audit_book import Verdict
from node.client.audit_opening import Opening
from node.errors import UserError
from node.model.checkpoint import Checkpoint
from node.verify.model_judge import ModelJudge

logger = logging.getLogger("efedllm")


class ClientJudge:
    """Judges a client's audits as soon as there is a calibration; the client lets it look for one.

    Args:
        checkpoint: the model.
        current: by what is judged.
        home: where a calibration that is found is kept.
        tell: told once why something is not judged.
    """

    def __init__(self, checkpoint: Checkpoint, current: Current, home: Path, tell: Callable[[str], None]) -> None:
        self.current = current
        self._judge = ModelJudge(checkpoint, current, tell=tell)
        self._checkpoint = checkpoint
        self._home = home
        self._tell = tell

    def __call__(self, opening: Opening) -> Verdict:
        """Judge an opening; waits for those before it."""
        return self._judge(opening)

    async def attend(self, swarm: Swarm, anchors: Sequence[str]) -> None:
        """Look for a calibration while the client runs, unless the model came with one, or the user has named one."""
        if self.current.calibration is not None:
            return
        logger.info("audits are not judged before there is a calibration of %s", self._checkpoint.name)
        manifest = await asyncio.to_thread(lambda: self._checkpoint.manifest32)
        seeker = CalibrationSeeker(swarm, manifest, self.current, self._home, anchors=anchors, tell=self._tell)
        await seeker.run()


def judge_for_client(
    model: str, revision: str | None, calibration: Path | None, home: Path, tell: Callable[[str], None] = logger.warning
) -> ClientJudge | None:
    """Return a judge for a client of a model; None: the weights are not on this machine.

    Args:
        model: directory, hub id or ``embedded``.
        revision: on the hub.
        calibration: a file; None: the one that this package has for the model, or that the client's anchors name.
        home: where digests of files and calibrations are kept.
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
    current = Current(find_calibration(checkpoint.manifest32, calibration))
    return ClientJudge(checkpoint, current, home, tell)
