"""Whom of a model's servers to use, by where they stand: who gets nothing, who gets what others lack, who is preferred.

Pure. Standing is a gate, and a weight among the good; latency decides between these. While nobody in the swarm is
trusted, newcomers have to do the work, and only proven misconduct keeps anyone out. While nothing is known, nothing
does.

    blocks          0   1   2   3   4   5
    established     ├───A───────┤
                    ├───B───────┤
                    ├───C───────────┤
    newcomer        ├───N───────────────────┤
    N may serve                 ├───────────┤      where fewer than three established servers are
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dht.records import Announcement, ServerState
from dht.standing.ranks import Rank, Ranks

MIN_ESTABLISHED = 3
"""With fewer established servers of a block newcomers serve it, too: the bootstrap rule."""

_BARRED = {
    Rank.CONVICTED: "it was convicted of false work; `efedllm score {} --why` tells more",
    Rank.EQUIVOCATOR: "it signed two receipts that contradict each other; `efedllm score {} --why` tells more",
    Rank.ENDED: "this identity has ended: another one has taken its place",
}
_WELL_SERVED = "it is a newcomer, and its blocks have three established servers or more"


@dataclass(frozen=True, slots=True)
class Trust:
    """What standing means for a plan over one model's servers."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Of peers, in (0, 1]; none counts as 1."""
    barred: Mapping[str, str] = field(default_factory=dict)
    """Peers that get nothing, and why, for people."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Blocks of newcomers that lack established servers; of these alone they may be used."""

    @property
    def has_newcomers(self) -> bool:
        """Whether newcomers are kept from some of their blocks."""
        return bool(self.spans) or _WELL_SERVED in self.barred.values()

    @property
    def on_probation(self) -> frozenset[str]:
        """Newcomers that may be used for nothing: shadow traffic is all that they can prove themselves by."""
        return frozenset(peer for peer, why in self.barred.items() if why == _WELL_SERVED)

    def relaxed(self) -> Trust:
        """Return what holds where there is no way otherwise: newcomers may do all that they announce."""
        spared = {peer: why for peer, why in self.barred.items() if why != _WELL_SERVED}
        return Trust(self.scores, spared)


UNKNOWN = Trust()
"""While nothing is known."""


def trust_of(servers: Sequence[Announcement], ranks: Ranks | None, num_blocks: int) -> Trust:
    """Say what standing means for the servers of one model.

    Args:
        servers: one announcement of each peer.
        ranks: where everyone stands; None: nothing is known.
        num_blocks: blocks of the model.
    """
    if ranks is None:
        return UNKNOWN
    rank = {server.owner: ranks.of(server.owner).rank for server in servers}
    barred = {peer: _BARRED[place].format(peer) for peer, place in rank.items() if place in _BARRED}
    if not ranks.has_flow:
        return Trust(barred=barred)
    scores = {peer: ranks.of(peer).weight for peer in rank if peer not in barred}
    counts = _num_established(servers, rank, num_blocks)
    spans = {}
    for server in servers:
        if rank[server.owner] is Rank.NEWCOMER:
            held = range(max(0, server.start), min(server.end, num_blocks))
            lacking = _longest_run([block for block in held if counts[block] < MIN_ESTABLISHED])
            if lacking is None:
                barred[server.owner] = _WELL_SERVED
            else:
                spans[server.owner] = lacking
    return Trust(scores, barred, spans)


def _num_established(servers: Iterable[Announcement], rank: Mapping[str, Rank], num_blocks: int) -> list[int]:
    """Count by block the established servers that are online."""
    steps = [0] * (num_blocks + 1)
    for server in servers:
        start, end = max(0, server.start), min(server.end, num_blocks)
        if start < end and rank[server.owner] is Rank.ESTABLISHED and server.state is ServerState.ONLINE:
            steps[start] += 1
            steps[end] -= 1
    return list(itertools.accumulate(steps))[:num_blocks]


def _longest_run(blocks: Sequence[int]) -> tuple[int, int] | None:
    """Return the longest run of consecutive numbers, the first of equals; None: there is no number."""
    best: tuple[int, int] | None = None
    start = 0
    for at, block in enumerate(blocks):
        if at and block != blocks[at - 1] + 1:
            start = at
        if best is None or at + 1 - start > best[1] - best[0]:
            best = (blocks[start], block + 1)
    return best
