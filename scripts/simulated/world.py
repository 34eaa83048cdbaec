"""A swarm on paper: which servers come, when they go, and the most that any placement of them could give. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

HOUR_S = 3600


@dataclass(frozen=True)
class World:
    """What the swarm is like."""

    num_servers: int = 200
    """Servers on average."""
    num_blocks: int = 80
    """Blocks of the model."""
    min_count: int = 2
    """Fewest blocks that a server holds."""
    max_count: int = 16
    """Most blocks that a server holds; all numbers between are equally likely."""
    rate: float = 100.0
    """Median rate of a server, block-tokens/s."""
    rate_sigma: float = 1.0
    """Standard deviation of the rate's logarithm."""
    noise_sigma: float = 0.1
    """Standard deviation of the logarithm of what a server measures over its rate; drawn anew at each new place."""
    mean_life_h: float = 4.0
    """Mean life of a server, h; as many come as go."""
    pinned_share: float = 0.2
    """Share of servers whose owners chose that they never move."""
    warm_up_h: float = 1.0
    """Time that is not counted, h; the first servers come one by one within its first half."""
    hours: float = 12.0
    """Time that is counted, h."""
    tick_s: int = 5
    refresh_s: int = 20
    """How often announcements and views of the directory are renewed, s."""
    expiry_s: int = 60
    """How long an announcement lives after it was renewed, s."""
    look_s: int = 60
    """How often a server looks whether it should move, s."""
    out_s: int = 60
    """How long draining and loading, or loading alone, takes, s."""


class Newcomer(NamedTuple):
    """A server, before it has chosen its blocks."""

    name: str
    born_s: int
    dies_s: int
    rate: float
    count: int
    is_pinned: bool


def newcomers(world: World, seed: int) -> list[Newcomer]:
    """Draw all servers that ever come, by birth."""
    draw = random.Random(seed)  # noqa: S311
    end_s = int((world.warm_up_h + world.hours) * HOUR_S)
    gap_s = world.mean_life_h * HOUR_S / world.num_servers
    first = [world.warm_up_h * HOUR_S / 2 * number / world.num_servers for number in range(world.num_servers)]
    later = list(itertools.takewhile(lambda born_s: born_s < end_s, _arrivals(draw, gap_s)))
    return [_newcomer(world, draw, number, born_s) for number, born_s in enumerate(sorted(first + later))]


def _arrivals(draw: random.Random, gap_s: float) -> Iterator[float]:
    now_s = 0.0
    while True:
        now_s += draw.expovariate(1 / gap_s)
        yield now_s


def _newcomer(world: World, draw: random.Random, number: int, born_s: float) -> Newcomer:
    born = int(born_s // world.tick_s * world.tick_s)
    life_s = draw.expovariate(1 / (world.mean_life_h * HOUR_S))
    rate = world.rate * draw.lognormvariate(0, world.rate_sigma)
    count = draw.randint(world.min_count, world.max_count)
    name = f"{draw.getrandbits(64):016x}-{number}"
    return Newcomer(name, born, born + int(life_s), rate, count, draw.random() < world.pinned_share)


def optimum(alive: Sequence[Newcomer], num_blocks: int) -> float:
    """Return what no placement of these servers can exceed, thousandths of a token per second.

    Let t be the bottleneck. Of what a server gives to a block only t is of use, and of the blocks 0, d, 2d, ... a
    window of n holds at most ceil(n / d). So for every d the useful shares over those blocks must reach t times their
    number; d = 1 without the cut at t is the total rate over the number of blocks.
    """
    servers = [(one.rate / one.count, one.count) for one in alive]
    best = sum(share * count for share, count in servers) / num_blocks
    for distance in range(1, num_blocks + 1):
        num_marked = -(-num_blocks // distance)
        marked = [(share, min(num_marked, -(-count // distance))) for share, count in servers]
        for _ in range(40):  # Each round cuts shares at the last bound; the bound falls to where that changes nothing.
            bound = sum(min(share, best) * count for share, count in marked) / num_marked
            if bound >= best * (1 - 1e-6):
                break
            best = bound
    return best
