"""The cheapest chains of servers over a run of blocks, by a dynamic programme on whole numbers, so that ties are exact.

Pure. It knows prices and not where they come from. Servers change only at cuts: at every block, or where spans begin
and end when there are too many blocks. The programme goes from the end to the beginning::

    begun[k][p]  cheapest way from cut k to the end that begins on server p (p's own fixed price is paid)
               = min over cuts m > k that p can run to:  blocks k..m on p  +  left[m][p]
    left[m][p]   cheapest way from cut m to the end for p, which hands on there
               = min over servers q != p:  hop p to q  +  fixed price of q  +  begun[m][q]

A chain of it may hold a server twice, which ``search`` mends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]
Marks: TypeAlias = npt.NDArray[np.bool_]

FAR = 1 << 60
"""Price of what cannot be; two of them still fit into 64 bits."""
_STAGE_BITS = 13
"""Prices stand above so many bits in which stages are counted: of two equal prices fewer stages are less."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Servers, by rising peer id, and what it costs to use them; prices as ``price`` makes them."""

    cuts: Numbers
    """Blocks before which servers may change, rising, the first and the end included, ``[cuts]``."""
    may_run: Marks
    """Whether a server may run the blocks from a cut to the next, ``[cuts - 1, servers]``."""
    block: Numbers
    """Price of one block, ``[servers]``."""
    fixed: Numbers
    """Price of being used at all, the count of one stage in it, ``[servers]``."""
    first: Numbers
    """Price of the way from what lies before, ``[servers]``."""
    last: Numbers
    """Price of the way to what lies behind, ``[servers]``."""
    hops: Numbers
    """Price of the way from one server to another, ``[servers, servers]``."""
    max_run: Numbers
    """Blocks that a server may run in one stage, ``[servers]``."""

    @property
    def num_cuts(self) -> int:
        """How many cuts there are."""
        return len(self.cuts)


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """What one server does in a route: the blocks between two cuts, by the cuts' places."""

    begin: int
    end: int
    server: int


Runs: TypeAlias = tuple[Run, ...]


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A chain of servers."""

    price: int
    """With the count of stages in its low bits."""
    runs: Runs

    @property
    def cost_us(self) -> int:
        """Time of one token, us."""
        return to_us(self.price)


def price(us: Numbers, *, num_stages: int = 0) -> Numbers:
    """Return times as prices that count ``num_stages`` stages."""
    return (us << _STAGE_BITS) + num_stages


def to_us(price: int) -> int:
    """Return the time in a price, us."""
    return int(price) >> _STAGE_BITS


def price_of(graph: Graph, runs: Sequence[Run]) -> int:
    """Return the price of ``runs``."""
    used = [run.server for run in runs]
    blocks = sum(int(graph.cuts[run.end] - graph.cuts[run.begin]) * int(graph.block[run.server]) for run in runs)
    hops = sum(int(graph.hops[one, other]) for one, other in itertools.pairwise(used))
    ends = int(graph.first[used[0]]) + int(graph.last[used[-1]])
    return blocks + hops + ends + sum(int(graph.fixed[server]) for server in used)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A solved problem: the cheapest ways to the end."""

    graph: Graph
    reach: Numbers
    """The last cut that a server can run to from a cut, ``[cuts, servers]``; the cut itself where it cannot run."""
    begun: Numbers
    """``[cuts, servers]``"""
    left: Numbers
    """``[cuts, servers]``"""
    onward: Numbers
    """The server that each hands on to at a cut, where there is a way, ``[cuts, servers]``."""

    def way_from(self, cut: int, server: int) -> Runs:
        """Return the cheapest runs to the end that begin on ``server``: each goes as far as it may, then lower ids."""
        graph, runs = self.graph, list[Run]()
        while True:
            ways = self.left[:, server] + graph.cuts * graph.block[server]
            until = int(self.reach[cut, server])
            steps = np.flatnonzero(ways[cut + 1 : until + 1] == ways[cut + 1 : until + 1].min())
            end = cut + 1 + int(steps[-1])
            runs.append(Run(cut, end, server))
            if end == graph.num_cuts - 1:
                return tuple(runs)
            cut, server = end, int(self.onward[end, server])

    def best(self) -> Found | None:
        """Return the cheapest chain, which may hold a server twice; None: there is none."""
        graph = self.graph
        prices = graph.first + graph.fixed + self.begun[0]
        server = int(np.argmin(prices))
        if prices[server] >= FAR:
            return None
        return Found(int(prices[server]), self.way_from(0, server))


def solve(graph: Graph, *, once: bool = False) -> Table:
    """Fill the table of cheapest ways, from the end to the beginning.

    Args:
        graph: servers and prices.
        once: never hand on to a way that holds the server already: no server then comes twice, but the cheapest such
            chain may be missed, because of all ways from a cut only the cheapest one is known.
    """
    cuts, last = graph.cuts, graph.num_cuts - 1
    reach = reach_of(graph)
    used = _UsedServers(reach.shape) if once else None
    begun = np.full((last + 1, len(graph.block)), FAR, dtype=np.int64)
    left = np.full_like(begun, FAR)
    left[last] = graph.last
    onward = np.zeros_like(begun)
    ways = np.full_like(begun, FAR)
    ways[last] = graph.last + cuts[last] * graph.block
    numbers = np.arange(last + 1)[:, None]
    for cut in range(last - 1, -1, -1):
        near = np.flatnonzero(reach[cut] > cut)
        if not len(near):
            continue
        far = int(reach[cut].max()) + 1
        within = numbers[cut + 1 : far] <= reach[cut, near]
        shortest = np.where(within, ways[cut + 1 : far, near], FAR).min(axis=0) - cuts[cut] * graph.block[near]
        begun[cut, near] = np.where(shortest > FAR // 2, FAR, shortest)
        from_all = graph.hops[:, near] + graph.fixed[near] + begun[cut, near]
        from_all[near, np.arange(len(near))] = FAR
        if used is not None:
            used.begin(cut, near, reach, ways - cuts[cut] * graph.block)
            from_all[used.holds(cut, near)] = FAR
        onward[cut] = near[from_all.argmin(axis=1)]
        if used is not None:
            used.leave(cut, onward[cut])
        left[cut] = np.minimum(from_all.min(axis=1), FAR)
        ways[cut] = np.where(left[cut] < FAR, left[cut] + cuts[cut] * graph.block, FAR)
    return Table(graph, reach, begun, left, onward)


class _UsedServers:
    """Which servers the cheapest ways hold, while a table is filled."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        cuts, servers = shape
        self._begun = np.zeros((cuts, servers, servers), dtype=np.bool_)
        self._left = np.zeros_like(self._begun)

    def begin(self, cut: int, near: Numbers, reach: Numbers, ways: Numbers) -> None:
        """Note what the ways hold that begin at ``cut`` on the servers ``near``."""
        for server in near:
            until = int(reach[cut, server]) + 1
            end = until - 1 - int(np.argmin(ways[cut + 1 : until, server][::-1]))
            self._begun[cut, server] = self._left[end, server]
            self._begun[cut, server, server] = True

    def holds(self, cut: int, near: Numbers) -> Marks:
        """Say for each server whether the ways that begin on ``near`` hold it, ``[servers, near]``."""
        held: Marks = self._begun[cut, near].T
        return held

    def leave(self, cut: int, onward: Numbers) -> None:
        """Note that each server hands on at ``cut`` to the server in ``onward``."""
        self._left[cut] = self._begun[cut, onward]


def reach_of(graph: Graph) -> Numbers:
    """Return the last cut that each server can run to from each cut, ``[cuts, servers]``; the cut itself if none."""
    cuts, last = graph.cuts, graph.num_cuts - 1
    reach = np.full((last + 1, len(graph.block)), last, dtype=np.int64)
    for cut in range(last - 1, -1, -1):
        reach[cut] = np.where(graph.may_run[cut], reach[cut + 1], cut)
    room = np.searchsorted(cuts, cuts[:, None] + graph.max_run[None, :], side="right") - 1
    return np.minimum(reach, room)
