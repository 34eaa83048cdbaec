"""Read where everyone stands in a swarm, once, for a command that people wait for.

Runs in the event loop; the computation in a thread.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dht.parameters import JoinCode, split_address
from dht.standing.board import ScoreBoard
from dht.swarm import Swarm


def bootstraps_of(join: JoinCode) -> tuple[str, ...]:
    """Name the peers through which a join code leads."""
    return tuple(dict.fromkeys(split_address(address)[1] for address in join.addresses))


def board_of(swarm: Swarm, join: JoinCode, anchors: Sequence[str]) -> ScoreBoard:
    """Describe the scores of a swarm.

    Args:
        swarm: Entered before anything is read.
        join: How it was joined.
        anchors: Whose trust counts for this user; none: those of the swarm.
    """
    return ScoreBoard(swarm, bootstraps_of(join), anchors=anchors, rng=random.SystemRandom())
