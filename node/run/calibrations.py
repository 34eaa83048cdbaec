"""What a node does about calibrations while it runs: it hands out what it has, an anchor names it, others look for one.

Runs in the event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path

from dht.identity import Identity
from dht.swarm import Swarm
from node.calibrations.current import Current
from node.calibrations.publisher import CalibrationPublisher
from node.calibrations.seeker import CALIBRATION_PROTOCOL, STREAM_S, CalibrationSeeker
from node.check.calibration import Calibration, encode_calibration
from node.errors import UserError
from node.handout import Handout
from node.run.duties import in_background
from node.run.events import Reporter


@contextlib.asynccontextmanager
async def calibration_of_model(
    home: Path,
    swarm: Swarm,
    identity: Identity,
    manifest: bytes,
    current: Current,
    reporter: Reporter,
    *,
    anchors: Sequence[str] = (),
    publishes: bool = False,
) -> AsyncIterator[None]:
    """Care for the calibration of one model inside the context.

    Args:
        home: the node's state directory.
        swarm: entered.
        identity: who signs.
        manifest: identity of the model, 32 bytes.
        current: what the node has been given, or has for the bundled model; nothing: it is looked for.
        reporter: told of what is found, and why nothing is.
        anchors: whose word counts for this node; none: those of the swarm.
        publishes: whether what it has been given is published even though it is no anchor of the swarm.
    """
    given = current.calibration
    await Handout(CALIBRATION_PROTOCOL, current.file, stream_s=STREAM_S).start(swarm)
    if given is not None:
        duty = CalibrationPublisher(swarm, identity, [given], anchors_only=not publishes).run
        what = "publishing the calibration"
    else:
        current.on_used.append(_teller(reporter))
        duty = CalibrationSeeker(swarm, manifest, current, home, anchors=anchors, tell=reporter.say).run
        what = "looking for a calibration"
    async with in_background({what: duty}):
        yield


@contextlib.asynccontextmanager
async def calibrations_of_bootstrap(
    swarm: Swarm, identity: Identity, calibrations: Sequence[Calibration], reporter: Reporter
) -> AsyncIterator[None]:
    """Publish calibrations, and hand them out, inside the context.

    Args:
        swarm: entered.
        identity: who signs.
        calibrations: one of a model each; none: nothing is done.
        reporter: told where nobody follows them.
    """
    if not calibrations:
        yield
        return
    files = {sha256(data).digest(): data for data in map(encode_calibration, calibrations)}
    await Handout(CALIBRATION_PROTOCOL, files.get, stream_s=STREAM_S).start(swarm)
    publisher = CalibrationPublisher(swarm, identity, calibrations)
    if swarm.parameters is not None and not publisher.is_anchor:
        reporter.say(
            "This bootstrap is no anchor of its swarm, so nobody follows its calibrations; pass --calibration to one."
        )
    async with in_background({"publishing calibrations": publisher.run}):
        yield


def one_of_each(calibrations: Sequence[Calibration]) -> tuple[Calibration, ...]:
    """Return them.

    Raises:
        UserError: two are of one model.
    """
    if len({each.manifest for each in calibrations}) < len(calibrations):
        raise UserError("Two of the calibrations are of one model; pass --calibration once for each model.")
    return tuple(calibrations)


def _teller(reporter: Reporter) -> Callable[[Calibration], None]:
    def tell(calibration: Calibration) -> None:
        digest = calibration.digest.hex()
        reporter.event("calibration", {"sha256": digest, "manifest": calibration.manifest.hex()})
        reporter.say(f"Work is judged by the calibration {digest[:16]}, which the anchors name.")

    return tell
