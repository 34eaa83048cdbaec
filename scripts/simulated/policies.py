"""Servers in a simulated swarm, and the rules by which they may move. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dht.records import Announcement, ServerState
from node.serve.balance import Move, choose_span, plan_moves, read_holdings, supplies
from node.serve.patience import Patience
from simulated.world import Newcomer

MANIFEST = bytes(32)


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
        self.announce(ServerState.JOINING)


View = Sequence[Announcement]
Policy = Callable[[View, Sequence[Server], int], list[tuple[Server, int]]]
"""A view, those that look at it, and the time, s: who moves, and to which first block."""


def stay(_view: View, _looking: Sequence[Server], _now_s: int) -> list[tuple[Server, int]]:
    """Never move."""
    return []


class Naive:
    """Move whenever any other place seems better by anything at all, as soon as it is seen."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks

    def __call__(self, view: View, looking: Sequence[Server], _now_s: int) -> list[tuple[Server, int]]:
        """Return who of ``looking`` moves, and to which first block."""
        starts = ((server, self._better_start(view, server)) for server in looking)
        return [(server, start) for server, start in starts if start is not None]

    def _better_start(self, view: View, server: Server) -> int | None:
        own = server.announcement
        others = [one for one in view if one.owner != own.owner]
        start, end = choose_span(others, self._num_blocks, server.newcomer.count)
        better = self._sorted_supplies([*others, replace(own, start=start, end=end)])
        return start if better > self._sorted_supplies([*others, own]) else None

    def _sorted_supplies(self, view: View) -> list[int]:
        return sorted(supplies(read_holdings(view, self._num_blocks), self._num_blocks))


class InTurn:
    """Move as node/serve/balance.py says; those who look at the same time share their memory of others' turns."""

    def __init__(self, num_blocks: int, min_gain: float, look_s: int) -> None:
        self._num_blocks = num_blocks
        self._min_gain = min_gain
        self._look_s = look_s
        self._memories: dict[int, Patience] = {}
        self._known: tuple[View, frozenset[str], tuple[Move, ...]] = ((), frozenset(), ())

    def __call__(self, view: View, looking: Sequence[Server], now_s: int) -> list[tuple[Server, int]]:
        """Return who of ``looking`` moves, and to which first block."""
        memory = self._memories.setdefault(now_s % self._look_s, Patience())
        moves = self._plan(view, memory.reluctant(now_s))
        memory.note(moves, now_s)
        starts = {move.owner: move.start for move in moves}
        return [(server, starts[server.newcomer.name]) for server in looking if server.newcomer.name in starts]

    def _plan(self, view: View, reluctant: frozenset[str]) -> tuple[Move, ...]:
        known_view, known_reluctant, moves = self._known
        if view is not known_view or reluctant != known_reluctant:
            moves = plan_moves(view, self._num_blocks, reluctant=reluctant, min_gain=self._min_gain)
            self._known = view, reluctant, moves
        return moves
