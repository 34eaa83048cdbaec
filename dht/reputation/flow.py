"""Carry trust from the anchors along the shares, four steps far: a random walk that starts anew, cut short.

    m_0    = 1 / number of anchors, at each anchor
    m_h+1  = what each peer's m_h gives to others by its shares; what it does not give returns to the anchors, evenly
    F      = sum over h = 0..4 of 3/10 * (7/10)^h * m_h

Whoever gets nothing from a peer that gets something has no flow, however many there are of it. Personalised PageRank;
steps are few, so that there is no question of convergence. Pure.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dht.reputation.edges import Rows
from dht.reputation.fixed_point import BITS, ONE
from dht.reputation.rules import ScoreRules


@dataclass(frozen=True, slots=True)
class Flow:
    """Where the anchors' trust has come to."""

    shares: Rows  # by who gives and who gets, Q40
    masses: tuple[Mapping[str, int], ...]  # by step, what each peer holds, Q40
    restart: tuple[int, ...]  # by step, what it counts, in units of 1 / ``scale``
    scale: int
    total: Mapping[str, int]  # F, Q40

    def inflows(self, peer: str) -> dict[str, int]:
        """Give how much of a peer's flow came from whom, Q40; an anchor's own and what returns to it are left out."""
        found: dict[str, int] = {}
        for giver, row in self.shares.items():
            share = row.get(peer, 0)
            steps = zip(self.masses[:-1], self.restart[1:], strict=True)
            given = sum(counts * (mass.get(giver, 0) * share >> BITS) for mass, counts in steps)
            if given >= self.scale:
                found[giver] = given // self.scale
        return found


def walk(shares: Rows, anchors: Collection[str], rules: ScoreRules) -> Flow:
    """Let trust flow from the anchors."""
    stays, whole = rules.restart.numerator, rules.restart.denominator
    restart = tuple(stays * (whole - stays) ** hop * whole ** (rules.hops - hop) for hop in range(rules.hops + 1))
    scale = whole ** (rules.hops + 1)
    masses = [dict.fromkeys(anchors, ONE // len(anchors))] if anchors else [{}]
    for _ in range(rules.hops):
        masses.append(_step(masses[-1], shares, anchors))
    sums: dict[str, int] = {}
    for mass, counts in zip(masses, restart, strict=True):
        for peer, held in mass.items():
            sums[peer] = sums.get(peer, 0) + counts * held
    return Flow(shares, tuple(masses), restart, scale, {peer: total // scale for peer, total in sums.items()})


def _step(mass: Mapping[str, int], shares: Rows, anchors: Collection[str]) -> dict[str, int]:
    moved: dict[str, int] = {}
    returned = 0
    for giver, held in mass.items():
        left = held
        for getter, share in shares.get(giver, {}).items():
            given = held * share >> BITS
            left -= given
            moved[getter] = moved.get(getter, 0) + given
        returned += left
    for anchor in anchors:
        moved[anchor] = moved.get(anchor, 0) + returned // len(anchors)
    return moved


def typical(flows: Iterable[int]) -> int:
    """Give the median of flows, each weighted by itself: half of all flow is with peers that have as much or more.

    Peers without flow do not move it, however many they are. 0 where there is no flow.
    """
    ordered = sorted(flows, reverse=True)
    half, above = sum(ordered), 0
    for flow in ordered:
        above += 2 * flow
        if above >= half:
            return flow
    return 0
