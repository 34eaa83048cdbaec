"""What a server's network carries: measured against members of the swarm, and bounded by its donor."""

from __future__ import annotations

import asyncio
import logging
import math

from dht.errors import DaemonDied, DhtError
from dht.swarm import Swarm

logger = logging.getLogger(__name__)

_MAX_ASKED = 3
"""Members that are asked, one after the other; the best answer counts, because the others may be slow themselves."""

_PATIENCE_S = 5.0
"""How long one of them may take."""


async def measure_network(swarm: Swarm, bound_bytes_per_s: float | None) -> float | None:
    """Return how fast bytes leave and reach this machine, the slower of both, bytes/s; None: it is not known.

    Args:
        swarm: whose members take part.
        bound_bytes_per_s: what the donor allows; where it is bounded nothing is sent: measuring would keep no bound.

    Raises:
        DaemonDied: our own p2pd has ended.
    """
    if bound_bytes_per_s is not None:
        return None
    rates = []
    for peer in swarm.members()[:_MAX_ASKED]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                rates.append(await swarm.measure_speed(peer))
        except DaemonDied:
            raise
        except (DhtError, TimeoutError) as error:
            logger.debug("the network was not measured: %s", error)
    return max(rates, default=None)


def carried_tokens_per_s(one_way_bytes_per_s: float | None, bound_bytes_per_s: float | None, token_bytes: int) -> float:
    """Return how many hidden states a second come in and go out again; inf where nothing is known.

    Args:
        one_way_bytes_per_s: what was measured of the slower direction; None: not known.
        bound_bytes_per_s: what the donor allows of both directions together; None: any amount.
        token_bytes: of one hidden state as it is computed.
    """
    measured = math.inf if one_way_bytes_per_s is None else one_way_bytes_per_s / token_bytes
    allowed = math.inf if bound_bytes_per_s is None else bound_bytes_per_s / (2 * token_bytes)
    return min(measured, allowed)
