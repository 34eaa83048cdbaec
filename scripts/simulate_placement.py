#!/usr/bin/env python3
"""Simulate the placement of blocks in a swarm whose servers come and go.

No sockets and no clock: time goes in ticks, and the rules are those of node/serve/balance.py. Servers differ in rate
(lognormal) and memory, live for a random time and vanish without a word; what they announced stays until it expires. A
newcomer takes the blocks that are weak in the directory. Each server looks now and then, in a directory that is up to a
refresh old, whether it should move; a move takes it out of service. Some servers never move. Prints one JSON line: for
each policy the bottleneck throughput over the optimum, how long a block was missing, and the moves. All policies see
the same servers at the same times.

The optimum is not a placement that was found but a bound that none can exceed: see `optimum` in simulated/world.py.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from simulated.policies import InTurn, Naive, Policy, Server, View, stay
from simulated.world import HOUR_S, World, newcomers, optimum

from dht.records import Announcement
from node.serve.balance import MIN_GAIN, choose_span

SAMPLE_S = 300
"""How often the optimum is found again, s."""


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
        self._now_shown: View | None = None
        """What the directory holds now; None: it has changed."""
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
            self._change()
        if any(expires_s <= now_s for expires_s, _ in self._dead):
            self._dead = [(expires_s, announced) for expires_s, announced in self._dead if expires_s > now_s]
            self._change()

    def _change(self) -> None:
        self._supply = self._now_shown = None

    def _go_online(self, now_s: int) -> None:
        for server in self._alive.values():
            if server.online_s == now_s:
                server.go_online(self._world.noise_sigma)
                self._change()

    def _view(self) -> View:
        if self._now_shown is None:
            alive = [server.announcement for server in self._alive.values()]
            self._now_shown = [*alive, *(announced for _, announced in self._dead)]
        return self._now_shown

    def _arrive(self, now_s: int) -> None:
        while self._coming and self._coming[-1].born_s <= now_s:
            newcomer = self._coming.pop()
            start, _ = choose_span(self._view(), self._world.num_blocks, newcomer.count)
            noise = random.Random(f"{self._seed} {newcomer.name}")  # noqa: S311
            self._alive[newcomer.name] = Server(newcomer, noise, start, now_s + self._world.out_s)
            self._change()

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
            self._change()
            if now_s >= world.warm_up_h * HOUR_S:
                self.tally.num_moves += 1

    def _count(self, now_s: int) -> None:
        world, tally = self._world, self.tally
        if self._supply is None:
            self._supply = self._true_bottleneck(now_s)
        if now_s % SAMPLE_S == 0 or not tally.optimum:
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


def simulate(world: World, seed: int, min_gain: float = MIN_GAIN, names: Sequence[str] = ()) -> dict[str, Any]:
    """Run the policies ``names``, or all, on the same servers and return the JSON line."""
    policies: dict[str, Policy] = {
        "stay": stay,
        "naive": Naive(world.num_blocks),
        "no_hysteresis": InTurn(world.num_blocks, 1.0, world.look_s),
        "in_turn": InTurn(world.num_blocks, min_gain, world.look_s),
    }
    found = {name: Simulation(world, seed, policies[name]).run() for name in names or policies}
    optima = next(iter(found.values())).optimum
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
    parser.add_argument("--policies", nargs="+", default=(), choices=("stay", "naive", "no_hysteresis", "in_turn"))
    defaults = World()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default: {value})")
    arguments = vars(parser.parse_args())
    seed, min_gain, names = (arguments.pop(name) for name in ("seed", "min_gain", "policies"))
    print(json.dumps(simulate(World(**arguments), seed, min_gain, names)))


if __name__ == "__main__":
    main()
