"""The cheapest chain of servers over a run of blocks: a dynamic programme, and branches where it takes one twice.

Pure, on whole numbers, so that ties are exact. It knows prices and not where they come from.

Servers change only at cuts: at every block, or where spans begin and end when there are too many blocks. The programme
goes from the end to the beginning::

    begun[k][p]  cheapest way from cut k to the end that begins on server p (p's own fixed price is paid)
               = min over cuts m > k that p can run to:  blocks k..m on p  +  left[m][p]
    left[m][p]   cheapest way from cut m to the end for p, which hands on there
               = min over servers q != p:  hop p to q  +  fixed price of q  +  begun[m][q]

No server may come twice in a route. Where the programme takes p twice, every allowed route is in one of three narrower
problems, which are solved in its place, the cheapest first::

      ..p p q q p p..      p not from here on | p not before here | p all through, and nobody else
           b   c                 (c)                  (b)               (b-1 to c)
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.int64]
Marks: TypeAlias = npt.NDArray[np.bool_]

FAR = 1 << 60
"""Price of what cannot be; two of them still fit into 64 bits."""
MAX_PROBLEMS = 200
"""Problems that one search solves at most."""
_STAGE_BITS = 13
"""Prices stand above so many bits in which stages are counted: of two equal prices fewer stages are less."""
_MAX_WORK = 200_000_000
"""Sums that one search may compare, so that nobody's announcements make it long."""
_MAX_MARKS = 2**24
"""Marks of what ways hold that a search may keep."""


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
            server = int(np.argmin(_onward(graph, server) + self.begun[end]))
            cut = end

    def best(self) -> Found | None:
        """Return the cheapest chain, which may hold a server twice; None: there is none."""
        graph = self.graph
        prices = graph.first + graph.fixed + self.begun[0]
        server = int(np.argmin(prices))
        if prices[server] >= FAR:
            return None
        return Found(int(prices[server]), self.way_from(0, server))


def _onward(graph: Graph, server: int) -> Numbers:
    onward: Numbers = graph.hops[server] + graph.fixed
    onward[server] = FAR
    return onward


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
        onward = graph.fixed[near] + begun[cut, near]
        from_all = graph.hops[:, near] + onward
        from_all[near, np.arange(len(near))] = FAR
        if used is not None:
            used.begin(cut, near, reach, ways - cuts[cut] * graph.block)
            from_all[used.holds(cut, near)] = FAR
            used.leave(cut, near[from_all.argmin(axis=1)])
        left[cut] = np.minimum(from_all.min(axis=1), FAR)
        ways[cut] = np.where(left[cut] < FAR, left[cut] + cuts[cut] * graph.block, FAR)
    return Table(graph, reach, begun, left)


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


def search(graph: Graph, max_problems: int | None = None) -> Found | None:
    """Return the cheapest chain without any server twice; None: there is none.

    Where very many problems would have to be solved, the best of those that were: then also None where none was found.

    Args:
        graph: servers and prices.
        max_problems: problems to solve at most; None: as many as the work on them allows.
    """
    left = _max_problems(graph) if max_problems is None else max_problems
    numbers = itertools.count()
    best = solve(graph).best()
    if best is None or first_twice(best.runs) is None:
        return best
    allowed = solve(graph, once=True).best() if graph.num_cuts * len(graph.block) ** 2 <= _MAX_MARKS else None
    open_problems = [(best, next(numbers), graph.may_run)]
    while open_problems:
        found, _, may_run = heapq.heappop(open_problems)
        if allowed is not None and allowed <= found:
            return allowed
        twice = first_twice(found.runs)
        if twice is None:
            return found
        for narrower in _branches(may_run, *twice):
            if left <= 0:
                return allowed
            left -= 1
            best = solve(replace(graph, may_run=narrower)).best()
            if best is None:
                continue
            heapq.heappush(open_problems, (best, next(numbers), narrower))
            if first_twice(best.runs) is None and (allowed is None or best < allowed):
                allowed = best
    return allowed


def _max_problems(graph: Graph) -> int:
    return max(4, min(MAX_PROBLEMS, _MAX_WORK // work(graph)))


def work(graph: Graph) -> int:
    """Return about how many sums one problem compares."""
    servers, cuts = len(graph.block), graph.num_cuts
    return cuts * servers * (cuts + servers)


def first_twice(runs: Runs) -> tuple[Run, Run] | None:
    """Return the first two runs of one server that comes twice; None: each comes once."""
    seen: dict[int, Run] = {}
    for run in runs:
        if run.server in seen:
            return seen[run.server], run
        seen[run.server] = run
    return None


def _branches(may_run: Marks, one: Run, other: Run) -> Iterator[Marks]:
    """Yield three narrower problems; every chain with no server twice is in one of them."""
    server = one.server
    early = may_run.copy()
    early[other.begin :, server] = False
    yield early
    late = may_run.copy()
    late[: one.end, server] = False
    yield late
    through = may_run.copy()
    through[one.end - 1 : other.begin + 1, :] = False
    through[one.end - 1 : other.begin + 1, server] = may_run[one.end - 1 : other.begin + 1, server]
    yield through


def cheapest_through(graph: Graph) -> list[Found | None]:
    """Return the cheapest chain through each server, which may hold another one twice; None: there is none.

    A forward and a backward table give all of them: to each server at each cut, and from it.
    """
    ahead, behind = solve(graph), solve(_mirrored(graph))
    last = graph.num_cuts - 1
    arrived = np.full_like(ahead.begun, FAR)
    arrived[0] = graph.first + graph.fixed
    for cut in range(1, last):
        arrived[cut] = np.minimum(behind.left[last - cut] + graph.fixed, FAR)
    prices = arrived + ahead.begun
    return [_join(graph, ahead, behind, prices[:, server], server) for server in range(len(graph.block))]


def _mirrored(graph: Graph) -> Graph:
    return replace(
        graph,
        cuts=(graph.cuts[-1] - graph.cuts)[::-1],
        may_run=graph.may_run[::-1],
        first=graph.last,
        last=graph.first,
        hops=graph.hops.T,
    )


def _join(graph: Graph, ahead: Table, behind: Table, prices: Numbers, server: int) -> Found | None:
    cut = int(np.argmin(prices))
    if prices[cut] >= FAR:
        return None
    runs = ahead.way_from(cut, server)
    if cut == 0:
        return Found(int(prices[cut]), runs)
    last = graph.num_cuts - 1
    ways = graph.hops[:, server] + graph.fixed + behind.begun[last - cut]
    ways[server] = FAR
    back = behind.way_from(last - cut, int(np.argmin(ways)))
    return Found(int(prices[cut]), (*(Run(last - run.end, last - run.begin, run.server) for run in back[::-1]), *runs))
