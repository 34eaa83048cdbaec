"""The widest route: the one whose slowest stage takes the least time per token, so that most tokens per second pass.

Pure. A bound on the time of a stage bounds how many blocks each server may run. Which bounds there is a route for is
told by giving each next block to the server whose span ends first, as the earliest deadline is served first:

- if servers may stop and go on, that is exact, and no route keeps to a lower bound than the lowest it finds;
- if each server has one turn, every bound it finds has a route, though a lower one may have one too.

Mostly the two agree. Between them, the search tells.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from node.client.search import search, work
from node.client.table import Found, Graph, Numbers, Run, price_of, reach_of

_WORK = 40_000_000
"""Sums that may be compared between the two bounds."""


def widest(graph: Graph, block_us: Sequence[int], fallback: Found) -> tuple[int, Graph, Found]:
    """Return the least time that the slowest stage must take, the graph bounded by it, and the fastest chain in that.

    Args:
        graph: servers and prices.
        block_us: time of one block at each server, us.
        fallback: a chain that there is in any case.
    """
    times = np.array(block_us, dtype=np.int64)
    bounds = _stage_times(graph, times)

    def bounded(at: int) -> Graph:
        return replace(graph, max_run=bounds[at] // times)

    low = _first(bounds, lambda at: _can_share(bounded(at)))
    high = max(low, _first(bounds, lambda at: _in_turns(bounded(at)) is not None))
    best = _in_turns(bounded(high)) or fallback
    tries = _WORK // work(graph) // 8
    while low < high:
        middle = (low + high) // 2
        found = search(bounded(middle), tries)
        low, high, best = (middle + 1, high, best) if found is None else (low, middle, found)
    best = min(best, search(bounded(high), tries) or best)
    return bounds[high], bounded(high), best


def _first(bounds: Sequence[int], holds: Callable[[int], bool]) -> int:
    """Return the first place in ``bounds`` for which ``holds``; the last one if there is no other."""
    return min(bisect.bisect_left(range(len(bounds)), True, key=holds), len(bounds) - 1)


def _stage_times(graph: Graph, times: Numbers) -> list[int]:
    """Return what a stage of any server can take for a token, us, rising."""
    lengths = (np.diff(graph.cuts)[:, None] * graph.may_run).sum(axis=0)
    every = [time * np.arange(1, length + 1) for time, length in zip(times, lengths, strict=True)]
    return [int(value) for value in np.unique(np.concatenate(every))]


def _can_share(graph: Graph) -> bool:
    """Say whether the servers could run all blocks if each might stop and go on again."""
    can_run = [(int(begin), int(end), int(run)) for begin, end, run in zip(*_spans(graph), graph.max_run, strict=True)]
    coming = sorted(can_run, reverse=True)
    ready: list[tuple[int, int]] = []
    for block in range(int(graph.cuts[0]), int(graph.cuts[-1])):
        while coming and coming[-1][0] <= block:
            _, end, run = coming.pop()
            heapq.heappush(ready, (end, run))
        while ready and (ready[0][0] <= block or not ready[0][1]):
            heapq.heappop(ready)
        if not ready:
            return False
        end, run = ready[0]
        heapq.heapreplace(ready, (end, run - 1))
    return True


def _spans(graph: Graph) -> tuple[Numbers, Numbers]:
    """Return the first block of each server and one past its last."""
    begins = graph.may_run.argmax(axis=0)
    ends = len(graph.may_run) - graph.may_run[::-1].argmax(axis=0)
    return graph.cuts[begins], graph.cuts[ends]


def _in_turns(graph: Graph) -> Found | None:
    """Give each server one turn, the one whose span ends first before others, as long as it may; None: not all run."""
    reach = reach_of(graph)
    ends = _spans(graph)[1]
    waiting = set(range(len(graph.block)))
    cut, runs = 0, list[Run]()
    while cut < graph.num_cuts - 1:
        ready = [server for server in waiting if reach[cut, server] > cut]
        if not ready:
            return None
        server = min(ready, key=lambda server: (ends[server], -reach[cut, server], server))
        waiting.remove(server)
        runs.append(Run(cut, int(reach[cut, server]), server))
        cut = runs[-1].end
    return Found(price_of(graph, runs), tuple(runs))
