"""Take part in the trials of claims in the background of whatever a node does, and keep scores by what it sees of them.

Runs in the event loop. What a server runs again, it runs on the checkpoint that it serves.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from dht.claim import Claim
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.swarm import Swarm
from node.calibrations.current import Current
from node.check.evidence import Evidence
from node.claims.findings import Examine, Finding, cannot_tell
from node.claims.keeping import ClaimsKeeping
from node.run.duties import in_background
from node.run.standings import bootstraps_of


@contextlib.asynccontextmanager
async def trials(
    home: Path,
    join: JoinCode | None,
    swarm: Swarm,
    identity: Identity,
    examine: Examine,
    *,
    anchors: Sequence[str] = (),
    current: Current | None = None,
) -> AsyncIterator[ClaimsKeeping]:
    """Take part while the context lasts.

    Args:
        home: the node's state directory.
        join: how the swarm was joined; None: it was founded here.
        swarm: entered.
        identity: who signs.
        examine: runs evidence again.
        anchors: whose trust counts for this node; none: those of the swarm.
        current: by what is examined, where that may come later: what could not be told is then examined again.
    """
    bootstraps = bootstraps_of(join) if join is not None else ()
    async with (
        ClaimsKeeping(home, swarm, identity, examine, bootstraps=bootstraps, anchors=anchors) as keeping,
        in_background({"taking part in trials": keeping.run}),
    ):
        if current is not None:
            current.on_used.append(lambda _: keeping.desk.reconsider())
        yield keeping


def without_weights(evidence: Evidence, claim: Claim) -> Finding:
    """Say what a node without weights finds of evidence that holds: nothing."""
    return cannot_tell("This node has no weights at hand.")
