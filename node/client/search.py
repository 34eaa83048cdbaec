"""The cheapest chain in which no server comes twice, and the cheapest through each server.

Pure. Where ``table`` takes a server p twice, every allowed chain is in one of three narrower problems, which are solved
in its place, the cheapest first::

      . p p q q p p .      p not from c on | p not before b | p all the way from b - 1 to c
            b   c
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from node.client.table import FAR, Found, Graph, Marks, Numbers, Run, Runs, Table, solve

MAX_PROBLEMS = 200
"""Problems that one search solves at most."""
_MAX_WORK = 200_000_000
"""Sums that one search may compare, so that nobody's announcements make it long."""
_MAX_MARKS = 2**24
"""Marks of what ways hold that a search may keep."""


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
