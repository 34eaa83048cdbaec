"""Whom to check next, and through whom else to go: all servers of a model in turn, least recently checked first. Pure.

blocks     0     1     2     3     4
a          |-----------|                       checked an hour ago
b                |-----------|                 checked two hours ago: next
c                      |-----------|
d                            |-----|
peers for b: a, b, d        not c, with which a route could do without b
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto


class Guise(Enum):
    """As which kind of client a canary goes."""

    WITH_ENDS = auto()
    """It embeds and scores itself, as most clients do."""
    ASKS_LOGITS = auto()
    """Without weights; the last server sends the likeliest logits."""
    ASKS_TOKENS = auto()
    """Without weights; the last server sends the likeliest token."""


_SHARES = {Guise.WITH_ENDS: 4, Guise.ASKS_LOGITS: 1, Guise.ASKS_TOKENS: 1}
"""Of the canaries. What is between the ends is the same in all; at the ends only hidden states can be claimed."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one server announces."""

    peer_id: str
    start: int
    """First block."""
    end: int
    """One past the last block."""
    has_ends: bool = False
    """Whether it embeds, if it holds the first block, and scores, if it holds the last one."""

    def overlap(self, start: int, end: int) -> int:
        """Return how many blocks of a span it holds."""
        return max(0, min(self.end, end) - max(self.start, start))


def in_turn(servers: Sequence[Held], checked_s: Mapping[str, float], chance: random.Random) -> list[Held]:
    """Return servers in the order in which they are to be checked; those that never were come first, by lot.

    Args:
        servers: one entry each.
        checked_s: when each was checked, or could not be, last.
        chance: decides between equals, so that nobody foresees the order.
    """
    shuffled = sorted(servers, key=lambda held: held.peer_id)
    chance.shuffle(shuffled)
    return sorted(shuffled, key=lambda held: checked_s.get(held.peer_id, -math.inf))


def peers_through(target: Held, servers: Sequence[Held], num_blocks: int) -> frozenset[str] | None:
    """Return peers of which a route takes ``target``, if such are to be had; None: the rest of the model has no server.

    Others are chosen that hold as few of its blocks as possible, so that a route among these few has no way around it
    but where there is no other choice. Whoever goes that way sees in the end whether it was taken.

    Args:
        target: who is to be checked.
        servers: one entry each.
        num_blocks: of the model.
    """
    others = [held for held in servers if held.peer_id != target.peer_id]
    chosen: list[Held] = []
    for start, end in ((0, target.start), (target.end, num_blocks)):
        at = start
        while at < end:
            fitting = [held for held in others if held.start <= at < held.end]
            if not fitting:
                return None
            best = min(fitting, key=lambda held: (held.overlap(target.start, target.end), -held.end, held.peer_id))
            chosen.append(best)
            at = best.end
    return frozenset({target.peer_id, *(held.peer_id for held in chosen)})


def draw_guise(held: Sequence[Held], chance: random.Random) -> Guise:
    """Draw as what a canary goes through these servers; with ends of its own where one of them does not offer any."""
    if not all(each.has_ends for each in held):
        return Guise.WITH_ENDS
    return chance.choices([*_SHARES], weights=[*_SHARES.values()])[0]


def can_cover(servers: Sequence[Held], num_blocks: int) -> bool:
    """Say whether servers hold all blocks of a model together."""
    at = 0
    while at < num_blocks:
        at_next = max((held.end for held in servers if held.start <= at < held.end), default=at)
        if at_next == at:
            return False
        at = at_next
    return True
