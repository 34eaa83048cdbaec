"""Start a whole swarm of real nodes on loopback, for tests and demonstrations of whoever builds on this package.

Each node is a p2pd process and its part of the DHT, in this process and this event loop, with a throw-away identity.
This file does not know what the nodes are for.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from dht.identity import Identity
from dht.parameters import JoinCode
from dht.swarm import Swarm


@contextlib.asynccontextmanager
async def testnet(
    num_nodes: int,
    *,
    name: str = "testnet",  # noqa: PT028 - no test, in spite of its name
    secret: bytes | None = None,  # noqa: PT028
) -> AsyncIterator[list[Swarm]]:
    """Run ``num_nodes`` swarms, every one joined through the first; all of them end with the context.

    Args:
        num_nodes: How many, at least 1.
        name: The swarm's name.
        secret: 32 bytes for a private swarm; None for a public one.
    """
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Swarm(Identity.ephemeral(), name=name, secret=secret))
        join = JoinCode(tuple(first.addresses), name, b"", secret)
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


testnet.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes every test* for a test


async def _entered(swarm: Swarm) -> None:
    await swarm.__aenter__()
