"""Start a whole swarm of real nodes on loopback, for tests and demonstrations of whoever builds on this package.

Each node is a p2pd process and its part of the DHT, in this process and this event loop, with a throw-away identity.
This file does not know what the nodes are for.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from dht.identity import Identity
from dht.parameters import SwarmParameters
from dht.records import SignedRecord, seal
from dht.rules import Rules
from dht.swarm import Swarm

LIFE_S = 86400
"""Seconds for which the parameters of such a swarm stand."""


@contextlib.asynccontextmanager
async def testnet(
    num_nodes: int,
    *,
    name: str = "testnet",  # noqa: PT028 - no test, in spite of its name
    secret: bytes | None = None,  # noqa: PT028
    rules: Rules | None = None,  # noqa: PT028
    key_quota: int = 4096,  # noqa: PT028
    anchors: Sequence[str] = (),  # noqa: PT028
) -> AsyncIterator[list[Swarm]]:
    """Run ``num_nodes`` swarms, every one joined through the first; all of them end with the context.

    With ``rules`` the first node founds the swarm: it signs and publishes its parameters, and the others read them.

    Args:
        num_nodes: How many, at least 1.
        name: The swarm's name.
        secret: 32 bytes for a private swarm; None for a public one.
        rules: Epochs, windows and proof of work; None: a swarm without parameters, which has the default rules.
        key_quota: Most records under one key, where there are ``rules``.
        anchors: Peer ids that the founder names as anchors, where there are ``rules``.
    """
    async with contextlib.AsyncExitStack() as stack:
        founder = Identity.ephemeral()
        founded = None
        if rules is not None:
            founded = found(founder, name, rules, private=bool(secret), key_quota=key_quota, anchors=anchors)
        envelope = b"" if founded is None else founded.envelope
        first = await stack.enter_async_context(Swarm(founder, name=name, secret=secret, parameters=envelope))
        if founded is not None:
            await first.store(founded)
        join = first.join_code
        others = [Swarm(Identity.ephemeral(), join=join) for _ in range(num_nodes - 1)]
        entering = [asyncio.get_running_loop().create_task(_entered(swarm)) for swarm in others]
        outcomes = await asyncio.gather(*entering, return_exceptions=True)
        failure = None
        for swarm, outcome in zip(others, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                failure = outcome
            else:
                stack.push_async_exit(swarm)
        if failure is not None:
            raise failure
        try:
            yield [first, *others]
        finally:
            # End them side by side: one after the other would take n times as long.
            leaving = [swarm for swarm, outcome in zip(others, outcomes, strict=True) if outcome is None]
            stack.pop_all()
            await asyncio.gather(*(swarm.__aexit__(None, None, None) for swarm in [*leaving, first]))


def found(
    founder: Identity,
    name: str,
    rules: Rules,
    *,
    private: bool = False,
    key_quota: int = 4096,
    anchors: Sequence[str] = (),
) -> SignedRecord:
    """Sign the parameters of a swarm with these rules, founded now."""
    parameters = SwarmParameters(
        founder=founder.peer_id,
        t=int(time.time()),
        life_s=LIFE_S,
        name=name,
        private=private,
        epoch_s=rules.epoch_s,
        proof_of_work_bits=rules.proof_of_work_bits,
        key_quota=key_quota,
        window_epochs=rules.window_epochs,
        evidence_epochs=rules.evidence_epochs,
        anchors=tuple(anchors),
    )
    return seal(parameters, founder)


testnet.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes every test* for a test


async def _entered(swarm: Swarm) -> None:
    await swarm.__aenter__()
