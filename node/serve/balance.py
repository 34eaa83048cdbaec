"""Which blocks the swarm needs a server for, and when a server should give its blocks up for others. Pure.

A server that decodes R block-tokens/s and holds n blocks can give R / n tokens/s to each of them: its share. What all
servers give to a block is the block's supply, and the smallest supply is the bottleneck: what the swarm can sustain.

Supplies are whole thousandths of a token/s, so that all who read the same announcements, in whatever order, find the
same numbers and agree whose turn it is. Announcements come from peers: a claim is believed up to a multiple of the
median, and what lies outside the model is ignored. This file does not know how blocks are loaded, nor who asks. A plan
for 200 servers takes up to ten milliseconds: run it beside the event loop.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dht.records import Announcement, ServerState

MIN_GAIN = 1.1
"""Moves must promise this times the present bottleneck. By simulation 1.05 takes twice the moves for nothing
(docs/benchmarks.md); and the sum of many rates, each measured with a third of error, errs by less than a tenth."""
LOOK_AHEAD = 8
"""Moves that may be needed until the gain is there, because several blocks are often equally weak. By simulation one
gives a quarter of what eight give, and sixteen cost half as many moves again for nothing."""
MAX_CLAIM = 32
"""A rate counts up to this times the median of the swarm: a false claim must not keep everyone away from a block."""
UNKNOWN_RATE_MILLI = 1000
"""Taken for a server that has not measured itself in a swarm where nobody has, thousandths of a block-token/s."""
MAX_RATE_MILLI = 2**36
"""No server counts for more, thousandths of a block-token/s; keeps sums over the swarm inside 63 bits."""

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one server gives to the swarm."""

    owner: str
    """Its peer id."""
    start: int
    """First block."""
    end: int
    """One past the last block, inside the model."""
    share_milli: int
    """What it can give to each of its blocks, thousandths of a token per second; at least 1."""
    is_online: bool
    """Whether it serves now; otherwise it is loading."""

    @property
    def count(self) -> int:
        """Blocks that it holds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Move:
    """The blocks that a server should hold instead of those that it holds."""

    owner: str
    """Peer id of the server that should move."""
    start: int
    """First block to take."""
    end: int
    """One past the last block to take."""


def carried_rate(blocks_per_s: float, count: int, network_tokens_per_s: float) -> float:
    """Return what a server should announce as its rate: what it computes, or less where its network carries less.

    Args:
        blocks_per_s: block-tokens per second that it computes.
        count: blocks that it holds; each token that comes in passes all of them.
        network_tokens_per_s: tokens whose hidden states its network takes in and sends on; inf: not known.
    """
    return min(blocks_per_s, network_tokens_per_s * count)


def read_holdings(servers: Iterable[Announcement], num_blocks: int) -> tuple[Holding, ...]:
    """Return what servers that are online or loading give to a model of ``num_blocks`` blocks, by peer id.

    A server that loads its first blocks has not measured itself; it counts with the median rate.
    """
    counted = {
        server.owner: server
        for server in sorted(servers, key=lambda server: (server.t, server.start, server.end))
        if server.state in (ServerState.ONLINE, ServerState.JOINING) and server.start < num_blocks
    }
    rates = [server.throughput_milli for server in counted.values() if server.throughput_milli > 0]
    median = statistics.median_low(rates) if rates else UNKNOWN_RATE_MILLI
    return tuple(_holding(counted[owner], num_blocks, median) for owner in sorted(counted))


def _holding(server: Announcement, num_blocks: int, median: int) -> Holding:
    is_online = server.state is ServerState.ONLINE
    rate = server.throughput_milli if is_online else server.throughput_milli or median
    share = min(rate, MAX_CLAIM * median, MAX_RATE_MILLI) // (server.end - server.start)
    return Holding(server.owner, server.start, min(server.end, num_blocks), max(1, share), is_online)


def supplies(held: Iterable[Holding], num_blocks: int) -> list[int]:
    """Return what each block is given, thousandths of a token per second."""
    return _sum_spans(((holding.start, holding.end, holding.share_milli) for holding in held), num_blocks)


def _sum_spans(spans: Iterable[tuple[int, int, int]], num_blocks: int) -> list[int]:
    """Return, for each block, the sum of what ``(start, end, amount)`` give to it."""
    changes = [0] * (num_blocks + 1)
    for start, end, amount in spans:
        changes[start] += amount
        changes[end] -= amount
    return list(itertools.accumulate(changes[:-1]))


def choose_span(servers: Iterable[Announcement], num_blocks: int, count: int) -> tuple[int, int]:
    """Return the window of ``count`` blocks where a server lifts the weakest blocks most; the first among equals.

    The bottleneck comes first, then the next weakest block, and so on. The server's own rate does not matter: the
    window whose blocks, sorted by supply, come first is the best one for any rate.

    Args:
        servers: who serves the model now, the one that asks left out; those online and loading count.
        num_blocks: blocks of the model.
        count: blocks to take, at most ``num_blocks``.
    """
    given = supplies(read_holdings(servers, num_blocks), num_blocks)
    start = _weakest_window(given, count, range(num_blocks - count + 1))
    return start, start + count


def plan_moves(
    servers: Iterable[Announcement],
    num_blocks: int,
    *,
    reluctant: frozenset[str] = frozenset(),
    min_gain: float = MIN_GAIN,
) -> tuple[Move, ...]:
    """Return the moves that lift the bottleneck to ``min_gain`` times the present one; none where a few cannot.

    Each is the one that relieves most of what blocks lack to that level, at its turn. All who see the same
    announcements find the same moves, so that no two servers go where one is enough. They may be made in any order,
    some of them, or all at once: no block falls below the present bottleneck while servers load.

    Args:
        servers: who serves the model now.
        num_blocks: blocks of the model.
        reluctant: peers that do not move although they should (``node.serve.patience``).
        min_gain: what the bottleneck must be multiplied by, at least.
    """
    held = read_holdings(servers, num_blocks)
    remaining = given = supplies(held, num_blocks)
    present = min(given)
    target = int(present * min_gain) + 1
    moves: list[Move] = []
    while (lacking := sum(max(0, target - supply) for supply in given)) > 0:
        movable = [holding.is_online and holding.owner not in reluctant for holding in held]
        index, start, relief = _best_step(held, movable, given, remaining, target, present)
        if relief == 0 or len(moves) + lacking / relief > LOOK_AHEAD:
            return ()
        leaving = held[index]
        moved = replace(leaving, start=start, end=start + leaving.count, is_online=False)
        moves.append(Move(moved.owner, moved.start, moved.end))
        held = (*held[:index], moved, *held[index + 1 :])
        given = supplies(held, num_blocks)
        left = _sum_spans([(leaving.start, leaving.end, leaving.share_milli)], num_blocks)
        remaining = [supply - gone for supply, gone in zip(remaining, left, strict=True)]
    return tuple(moves)


def _best_step(
    held: Sequence[Holding],
    movable: Sequence[bool],
    given: Sequence[int],
    remaining: Sequence[int],
    target: int,
    present: int,
) -> tuple[int, int, int]:
    """Return whose move relieves most: its place in ``held``, the first block to take, and how much; the last 0: none.

    Args:
        held: who holds what, moves that are planned already included.
        movable: of each, whether it can move.
        given: supplies of ``held``.
        remaining: supplies while all who are to move load.
        target: what every block should be given.
        present: what no block may fall below meanwhile.
    """
    if not any(movable):
        return 0, 0, 0
    online = _sum_spans(((one.start, one.end, int(one.is_online)) for one in held), len(given))
    starts, reliefs = _best_windows(held, given, target)
    for index in np.argsort(-reliefs, kind="stable").tolist():
        start, relief = int(starts[index]), int(reliefs[index])
        if relief <= 0:
            break
        if movable[index] and _may_leave(held[index], start, remaining, online, present):
            return index, start, relief
    return 0, 0, 0


def _best_windows(held: Sequence[Holding], given: Sequence[int], target: int) -> tuple[_Integers, _Integers]:
    """Return, for each server, the first block of its best window, and how much more it relieves there than now.

    What a server relieves at a block is its share, but no more than the block lacks to ``target`` without it.
    """
    blocks = np.arange(len(given))
    start, count, share = (
        np.array(column)[:, None]
        for column in zip(*((one.start, one.count, one.share_milli) for one in held), strict=True)
    )
    own = (start <= blocks) & (blocks < start + count)
    relieved = np.clip(target - np.array(given) + own * share, 0, share)
    sums = np.pad(relieved.cumsum(axis=1), ((0, 0), (1, 0)))
    # A window that would reach beyond the last block holds fewer; the whole one before it is as good and comes first.
    windows = np.take_along_axis(sums, np.minimum(blocks + count, len(given)), axis=1) - sums[:, :-1]
    best = windows.argmax(axis=1)
    return best, windows.max(axis=1) - np.take_along_axis(windows, start, axis=1)[:, 0]


def _may_leave(holding: Holding, start: int, remaining: Sequence[int], num_online: Sequence[int], present: int) -> bool:
    """Say whether the swarm can do without a server while it loads the blocks from ``start`` on.

    A block that it alone serves would be nobody's meanwhile. That costs nothing only where another block is nobody's
    already, and then the server must come back to it: one empty block in place of another helps nobody.
    """
    own = range(holding.start, holding.end)
    if any(remaining[block] - holding.share_milli < present for block in own):
        return False
    alone = [block for block in own if num_online[block] == 1]
    return not alone or (min(num_online) == 0 and start <= alone[0] and alone[-1] < start + holding.count)


def _weakest_window(given: Sequence[int], count: int, starts: Iterable[int]) -> int:
    """Return the start of the window whose sorted supplies come first.

    Two windows differ in the blocks that they do not share. At the smallest supply that one of them has more often,
    what is left out stays the smaller one: so this window leaves the best sorted supplies, whatever is added to it.
    """
    return min(starts, key=lambda start: (sorted(given[start : start + count]), start))
