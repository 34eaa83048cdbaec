"""What a bootstrap does for its swarm while it runs: parameters, snapshots, its own record, contradictions, trials.

Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from dht.beginnings import BEGINNINGS_FILE
from dht.enrolment import Enrolment
from dht.errors import DaemonDied, DhtError
from dht.ident import Role
from dht.identity import Identity
from dht.parameters import JoinCode, SwarmParameters
from dht.receipts.equivocations import EquivocationWatch
from dht.receipts.snapshot_keeper import SnapshotKeeper
from dht.records import Envelope, SignedRecord, place
from dht.standing.snapshot_scores import SnapshotScores
from dht.swarm import Swarm
from node.run.duties import in_background
from node.run.trials import trials, without_weights

logger = logging.getLogger(__name__)

_REPUBLISH_S = 600.0
_PUBLISH_S = 10.0


@contextlib.asynccontextmanager
async def bootstrap_duties(swarm: Swarm, identity: Identity, home: Path, join: JoinCode | None) -> AsyncIterator[None]:
    """Do them inside the context; who has the join code finds the parameters when it is entered.

    Args:
        swarm: Entered.
        identity: Of the bootstrap.
        home: Its state directory.
        join: How it joined another bootstrap's swarm; None: it has founded its own.
    """
    await publish_parameters(swarm)
    enrolment = Enrolment(swarm, identity, Role.BOOTSTRAP, path=home / BEGINNINGS_FILE)
    duties = {
        "publishing the swarm's parameters": lambda: _publish_parameters_again(swarm),
        "enrolling this identity": enrolment.run,
        "making snapshots": SnapshotKeeper(swarm, identity, scores=SnapshotScores(swarm)).run,
    }
    async with EquivocationWatch(swarm), in_background(duties), trials(home, join, swarm, identity, without_weights):
        yield


async def publish_parameters(swarm: Swarm) -> None:
    """Put the swarm's parameters on the DHT, if they are known here."""
    if swarm.parameters_envelope:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PUBLISH_S):
                await swarm.store(_as_record(swarm.parameters_envelope))


async def _publish_parameters_again(swarm: Swarm) -> None:
    await swarm.wait_for_rules()
    while True:
        await asyncio.sleep(_REPUBLISH_S)
        try:
            await publish_parameters(swarm)
        except DaemonDied:
            raise
        except DhtError as error:
            logger.warning("the swarm's parameters were not published: %s; trying again in a while", error)


def _as_record(envelope: bytes) -> SignedRecord:
    return place(SwarmParameters.from_body(Envelope.from_bytes(envelope).body), envelope)
