"""Read where everyone stands in a swarm, once, for a command that people wait for.

Runs in the event loop; the computation in a thread.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from dht.parameters import JoinCode, split_address
from dht.standing.board import ScoreBoard
from dht.swarm import Swarm
from node.claims.notebook import NOTEBOOK, kept_rulings


def bootstraps_of(join: JoinCode) -> tuple[str, ...]:
    """Name the peers through which a join code leads."""
    return tuple(dict.fromkeys(split_address(address)[1] for address in join.addresses))


def board_of(swarm: Swarm, join: JoinCode, anchors: Sequence[str], home: Path) -> ScoreBoard:
    """Describe the scores of a swarm, by what the node that lives here found final of claims, where one does.

    Args:
        swarm: Entered before anything is read.
        join: How it was joined.
        anchors: Whose trust counts for this user; none: those of the swarm.
        home: The node's state directory; nothing is written there.
    """
    return ScoreBoard(
        swarm,
        bootstraps_of(join),
        anchors=anchors,
        rng=random.SystemRandom(),
        kept=lambda by_whom: kept_rulings(home / NOTEBOOK, by_whom),
    )
