"""What a bootstrap does for its swarm's records while it runs: parameters, snapshots, its own record, contradictions.

Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from dht.beginnings import BEGINNINGS_FILE
from dht.enrolment import Enrolment
from dht.ident import Role
from dht.identity import Identity
from dht.parameters import SwarmParameters
from dht.receipts.equivocations import EquivocationWatch
from dht.receipts.snapshot_keeper import SnapshotKeeper
from dht.records import Envelope, SignedRecord, place
from dht.swarm import Swarm

_REPUBLISH_S = 600.0
_PUBLISH_S = 10.0


@contextlib.asynccontextmanager
async def bootstrap_duties(swarm: Swarm, identity: Identity, home: Path) -> AsyncIterator[None]:
    """Do them inside the context; who has the join code finds the parameters when it is entered.

    Args:
        swarm: Entered.
        identity: Of the bootstrap.
        home: Its state directory.
    """
    await publish_parameters(swarm)
    enrolment = Enrolment(swarm, identity, Role.BOOTSTRAP, path=home / BEGINNINGS_FILE)
    duties: list[Coroutine[Any, Any, None]] = [
        _publish_parameters_again(swarm), enrolment.run(), SnapshotKeeper(swarm, identity).run()
    ]  # fmt: skip
    async with EquivocationWatch(swarm):
        tasks = [asyncio.create_task(duty) for duty in duties]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


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
        await publish_parameters(swarm)


def _as_record(envelope: bytes) -> SignedRecord:
    return place(SwarmParameters.from_body(Envelope.from_bytes(envelope).body), envelope)
