#!/usr/bin/env python3
"""Simulate the placement of blocks in a swarm whose servers come and go.

No sockets and no clock: time goes in ticks, and the rules are those of node/serve/balance.py. Servers differ in rate
(lognormal) and memory, live for a random time and vanish without a word; what they announced stays until it expires. A
newcomer takes the blocks that are weak in the directory; each server looks now and then, in a directory that is up to
a refresh old, whether it should move; a move takes it out of service. Some servers never move. Prints one JSON line: for each
policy the bottleneck throughput over the optimum, how long a block was missing, and the moves. All policies see the
same servers at the same times.

The optimum is not a placement that was found but a bound that none can exceed: see `optimum`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from dht.records import Announcement, ServerState
from node.serve.balance import MIN_GAIN, choose_span, read_holdings, supplies
from node.serve.patience import Patience

HOUR_S = 3600
SAMPLE_S = 300
"""How often the optimum is found again, s."""
MANIFEST = bytes(32)


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


@dataclass
class Server:
    """A server in the swarm."""

    newcomer: Newcomer
    noise: random.Random
    start: int
    online_s: int
    """When it serves the blocks that it holds or loads."""
    rate_milli: int = 0
    """What it has measured."""
    num_moves: int = 0
    announcement: Announcement = field(init=False)

    def __post_init__(self) -> None:
        self.announce(ServerState.JOINING)

    def announce(self, state: ServerState) -> None:
        """Announce what it holds or will hold."""
        self.announcement = Announcement(
            manifest=MANIFEST, shard=0, owner=self.newcomer.name, t=0, life_s=60, state=state, start=self.start,
            end=self.start + self.newcomer.count, dtype="float32", throughput_milli=self.rate_milli, max_length=0,
            cache_free_tokens=0, addresses=(), version="",
        )  # fmt: skip

    def go_online(self, sigma: float) -> None:
        """Measure and serve."""
        self.rate_milli = int(1000 * self.newcomer.rate * self.noise.lognormvariate(0, sigma))
        self.announce(ServerState.ONLINE)

    def move(self, start: int, online_s: int) -> None:
        """Leave service and load other blocks; what it will hold is announced at once."""
        self.start, self.online_s = start, online_s
        self.num_moves += 1
        self.announce(ServerState.JOINING)


View = Sequence[Announcement]
Policy = Callable[[View, Sequence[Server], int], list[tuple[Server, int]]]
"""A view, those that look at it, and the time, s: who moves, and to which first block."""


def stay(_view: View, _looking: Sequence[Server], _now_s: int) -> list[tuple[Server, int]]:
    """Never move."""
    return []


def naive(num_blocks: int) -> Policy:
    """Move whenever any other place seems better by anything at all, as soon as it is seen."""

    def policy(view: View, looking: Sequence[Server], _now_s: int) -> list[tuple[Server, int]]:
        moves = []
        held = {holding.owner: holding for holding in read_holdings(view, num_blocks)}
        given = supplies(held.values(), num_blocks)
        for server in looking:
            own = held.get(server.newcomer.name)
            if own is None:
                continue
            others = [one for one in view if one.owner != own.owner]
            start, end = choose_span(others, num_blocks, own.count)
            moved = supplies(
                [*(one for one in held.values() if one != own), replace(own, start=start, end=end)], num_blocks
            )
            if sorted(moved) > sorted(given):
                moves.append((server, start))
        return moves

    return policy


def in_turn(num_blocks: int, min_gain: float, look_s: int) -> Policy:
    """Move as node/serve/balance.py says; those who look at the same time share their memory of others' turns."""
    memories: dict[int, Patience] = {}

    def policy(view: View, looking: Sequence[Server], now_s: int) -> list[tuple[Server, int]]:
        memory = memories.setdefault(now_s % look_s, Patience())
        moves = {move.owner: move.start for move in memory.plan_moves(view, num_blocks, now_s, min_gain=min_gain)}
        return [(server, moves[server.newcomer.name]) for server in looking if server.newcomer.name in moves]

    return policy


def newcomers(world: World, seed: int) -> list[Newcomer]:
    """Draw all servers that ever come, by birth."""
    draw = random.Random(seed)
    end_s = int((world.warm_up_h + world.hours) * HOUR_S)
    gap_s = world.mean_life_h * HOUR_S / world.num_servers
    first = [world.warm_up_h * HOUR_S / 2 * number / world.num_servers for number in range(world.num_servers)]
    later = list(itertools.takewhile(lambda born_s: born_s < end_s, _arrivals(draw, gap_s)))
    return [_newcomer(world, draw, number, born_s) for number, born_s in enumerate(sorted(first + later))]


def _arrivals(draw: random.Random, gap_s: float):
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


@dataclass
class Tally:
    """What is counted of one run, tick by tick."""

    supplied: list[float] = field(default_factory=list)
    """The bottleneck of the servers in service, by their true rates, tokens/s."""
    optimum: list[float] = field(default_factory=list)
    """The bound for all servers alive, tokens/s."""
    num_alive: list[int] = field(default_factory=list)
    num_out: list[int] = field(default_factory=list)
    """Servers alive and not in service."""
    num_moves: int = 0


class Simulation:
    """One swarm under one policy."""

    def __init__(self, world: World, seed: int, policy: Policy) -> None:
        self.tally = Tally()
        self._world = world
        self._policy = policy
        self._seed = seed
        self._coming = newcomers(world, seed)[::-1]
        self._alive: dict[str, Server] = {}
        self._dead: list[tuple[int, Announcement]] = []
        self._views: list[View] = []
        self._supply: float | None = None
        """The true bottleneck; None: it has to be found again."""
        self._optimum = 0.0

    def run(self) -> Tally:
        """Let all time pass."""
        world = self._world
        for now_s in range(0, int((world.warm_up_h + world.hours) * HOUR_S), world.tick_s):
            self._pass_away(now_s)
            self._go_online(now_s)
            self._views = [self._view(), *self._views[: world.refresh_s // world.tick_s - 1]]
            self._arrive(now_s)
            self._look(now_s)
            if now_s >= world.warm_up_h * HOUR_S:
                self._count(now_s)
        return self.tally

    def _pass_away(self, now_s: int) -> None:
        world = self._world
        for name in [name for name, server in self._alive.items() if server.newcomer.dies_s <= now_s]:
            gone = self._alive.pop(name)
            renewed_s = now_s - (now_s - gone.newcomer.born_s) % world.refresh_s
            self._dead.append((renewed_s + world.expiry_s, gone.announcement))
            self._supply = None
        self._dead = [(expires_s, announced) for expires_s, announced in self._dead if expires_s > now_s]

    def _go_online(self, now_s: int) -> None:
        for server in self._alive.values():
            if server.online_s == now_s:
                server.go_online(self._world.noise_sigma)
                self._supply = None

    def _view(self) -> View:
        return [server.announcement for server in self._alive.values()] + [announced for _, announced in self._dead]

    def _arrive(self, now_s: int) -> None:
        while self._coming and self._coming[-1].born_s <= now_s:
            newcomer = self._coming.pop()
            start, _ = choose_span(self._view(), self._world.num_blocks, newcomer.count)
            noise = random.Random(f"{self._seed} {newcomer.name}")
            self._alive[newcomer.name] = Server(newcomer, noise, start, now_s + self._world.out_s)

    def _look(self, now_s: int) -> None:
        world = self._world
        num_groups = world.look_s // world.tick_s
        group = now_s // world.tick_s % num_groups
        looking = [
            server
            for server in self._alive.values()
            if server.newcomer.born_s // world.tick_s % num_groups == group
            and server.online_s <= now_s
            and not server.newcomer.is_pinned
        ]
        view = self._views[group % len(self._views)]  # Each looks at a moment of its own between two refreshes.
        for server, start in self._policy(view, looking, now_s) if looking else []:
            server.move(start, now_s + world.out_s)
            self._supply = None
            if now_s >= world.warm_up_h * HOUR_S:
                self.tally.num_moves += 1

    def _count(self, now_s: int) -> None:
        world, tally = self._world, self.tally
        if self._supply is None:
            self._supply = self._true_bottleneck(now_s)
        if now_s % SAMPLE_S == 0:
            self._optimum = optimum([server.newcomer for server in self._alive.values()], world.num_blocks)
        tally.supplied.append(self._supply)
        tally.optimum.append(self._optimum)
        tally.num_alive.append(len(self._alive))
        tally.num_out.append(sum(1 for server in self._alive.values() if server.online_s > now_s))

    def _true_bottleneck(self, now_s: int) -> float:
        given = [0.0] * self._world.num_blocks
        for server in self._alive.values():
            if server.online_s <= now_s:
                for block in range(server.start, server.start + server.newcomer.count):
                    given[block] += server.newcomer.rate / server.newcomer.count
        return min(given)


def figures(world: World, tally: Tally) -> dict[str, float]:
    """Put what was counted into the figures of the JSON line."""
    shares = [got / best for got, best in zip(tally.supplied, tally.optimum, strict=True)]
    server_h = sum(tally.num_alive) * world.tick_s / HOUR_S
    return {
        "bottleneck_per_s": round(statistics.fmean(tally.supplied), 2),
        "share_of_optimum": round(sum(tally.supplied) / sum(tally.optimum), 4),
        "share_p05": round(statistics.quantiles(shares, n=20)[0], 4),
        "missing_share": round(sum(1 for got in tally.supplied if got == 0) / len(shares), 6),
        "out_of_service": round(sum(tally.num_out) / sum(tally.num_alive), 5),
        "moves": tally.num_moves,
        "moves_per_server_hour": round(tally.num_moves / server_h, 4),
    }


def simulate(world: World, seed: int, min_gain: float = MIN_GAIN) -> dict[str, Any]:
    """Run every policy on the same servers and return the JSON line."""
    policies = {
        "stay": stay,
        "naive": naive(world.num_blocks),
        "in_turn": in_turn(world.num_blocks, min_gain, world.look_s),
    }
    found = {name: Simulation(world, seed, policy).run() for name, policy in policies.items()}
    optima = found["stay"].optimum
    return {
        "simulation": "placement",
        "seed": seed,
        "min_gain": min_gain,
        **asdict(world),
        "optimum_per_s": round(statistics.fmean(optima), 2),
        "policies": {name: figures(world, tally) for name, tally in found.items()},
    }


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-gain", type=float, default=MIN_GAIN, help=f"of a move (default: {MIN_GAIN})")
    defaults = World()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default: {value})")
    arguments = vars(parser.parse_args())
    seed, min_gain = arguments.pop("seed"), arguments.pop("min_gain")
    print(json.dumps(simulate(World(**arguments), seed, min_gain)))


if __name__ == "__main__":
    main()
