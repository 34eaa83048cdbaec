"""Keep what a client knew last of where everyone stands: the next one, which may live for seconds, begins with it.

The file is of one swarm and one list of anchors, and is believed for some epochs: convictions last for weeks. Whatever
is wrong with it, it is as if there were none. Blocks for the disk; called in a thread.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from dht.standing.ranks import Rank, Ranked, Ranks

logger = logging.getLogger(__name__)

MAX_EPOCHS = 8
"""Epochs after which it is not believed any more."""

MAX_BYTES = 2**24
"""No file that we wrote is larger."""


@dataclass(frozen=True, slots=True)
class Whose:
    """What ranks are of."""

    swarm: str  # hash of its parameters, in hex
    anchors: tuple[str, ...]  # whose trust counts


def write_ranks(path: Path, whose: Whose, epoch: int, ranks: Ranks) -> None:
    """Write ranks as of an epoch; a disk that does not take them is logged."""
    peers = {peer: [str(place.rank), place.weight, place.is_watched] for peer, place in ranks.ranked.items()}
    kept = {
        "swarm": whose.swarm,
        "anchors": list(whose.anchors),
        "epoch": epoch,
        "has_flow": ranks.has_flow,
        "peers": peers,
    }
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(kept))
        draft.replace(path)
    except OSError as error:
        logger.info("where everyone stands was not kept in %s: %s", path, error)


def read_ranks(path: Path, whose: Whose, epoch: int) -> Ranks | None:
    """Read what was written of this swarm by these anchors in the last epochs; None: nothing."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        kept = json.loads(path.read_text())
        is_ours = (kept["swarm"], tuple(kept["anchors"])) == (whose.swarm, whose.anchors)
        if not is_ours or not 0 <= epoch - int(kept["epoch"]) <= MAX_EPOCHS:
            return None
        peers = {
            str(peer): Ranked(Rank(rank), min(1.0, max(0.0, float(weight))), bool(is_watched))
            for peer, (rank, weight, is_watched) in kept["peers"].items()
        }
        return Ranks(bool(kept["has_flow"]), peers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
