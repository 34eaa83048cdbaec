"""Rules of trust: from what is recorded to whom requests go. Ours is ``dht.reputation``, the others are beside it.

Where a rule has no place for newcomers, one request in twenty goes to anyone of the range, so that they become known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, Protocol

import numpy

from dht.reputation import ONE, Scores, score
from reputation_simulation.book import Book, Node
from reputation_simulation.settings import Settings

EXPLORED = 0.05
"""Of requests, where a rule has no place for newcomers."""

FAIL_WEIGHT = 10
"""Beta: one failed audit counts as many passed ones."""

RESTART = 0.15
"""EigenTrust: share of trust that returns to the anchors."""


@dataclass(frozen=True)
class Pool:
    """Who serves a range."""

    live: Sequence[Node]
    cumulated: Sequence[float]  # weights, each with those before it
    shadow: Sequence[Node] = ()  # newcomers, who are given copies of requests


class Rule(Protocol):
    """Sends work."""

    name: ClassVar[str]
    has_courts: ClassVar[bool]  # whether claims are judged

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves in the epoch that begins."""


def weighted(ranged: Sequence[Sequence[Node]], weights: dict[str, float]) -> list[Pool]:
    """Make pools of weights; a part of the requests goes to anyone."""
    pools = []
    for nodes in ranged:
        total = sum(weights.get(node.name, 0.0) for node in nodes)
        even = 1 / max(1, len(nodes))
        shares = [
            EXPLORED * even + (1 - EXPLORED) * (weights.get(node.name, 0.0) / total if total else even)
            for node in nodes
        ]
        pools.append(Pool(nodes, list(accumulate(shares))))
    return pools


def by_range(nodes: Iterable[Node], settings: Settings) -> list[list[Node]]:
    """Sort who is there by range."""
    ranged: list[list[Node]] = [[] for _ in range(settings.num_ranges)]
    for node in nodes:
        if node.is_alive:
            ranged[node.range].append(node)
    return ranged


class RandomRule:
    """Everyone alike."""

    name = "random"
    has_courts = False

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves."""
        return weighted(by_range(nodes, settings), {})


class PointsRule:
    """Volume of receipts times the share of passed audits."""

    name = "points"
    has_courts = False

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves."""

        def points(name: str) -> float:
            audited = book.audited[name]
            num = audited.passes + audited.fails
            return book.volume[name] * (audited.passes / num if num else 1.0)

        ranged = by_range(nodes, settings)
        return weighted(ranged, {node.name: points(node.name) for members in ranged for node in members})


class BetaRule:
    """The mean of a beta distribution over audits, whoever made them; who has less than half of the best gets none."""

    name = "beta"
    has_courts = False

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves."""
        pools = []
        for members in by_range(nodes, settings):
            audits = [book.audited[node.name] for node in members]
            means = [(1 + one.passes) / (2 + one.passes + FAIL_WEIGHT * one.fails) for one in audits]
            best = max(means, default=0.0)
            pools.append(Pool(members, list(accumulate(mean if 2 * mean >= best else 0.0 for mean in means))))
        return pools


class EigenTrustRule:
    """Trust that is passed on without end: what each consumer had, less its failed audits over the rate of audits."""

    name = "eigentrust"
    has_courts = False

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves."""
        ranged = by_range(nodes, settings)
        names = sorted(node.name for members in ranged for node in members)
        place = {name: number for number, name in enumerate(names)}
        local = numpy.zeros((len(names), len(names)))
        for (consumer, provider), units in book.served.items():
            if consumer in place and provider in place:
                fails = book.failed.get((consumer, provider), 0.0)
                local[place[consumer], place[provider]] = max(0.0, units - fails / settings.audit_rate)
        trusted = numpy.zeros(len(names))
        trusted[[place[anchor] for anchor in anchors if anchor in place]] = 1
        trusted /= trusted.sum()
        sums = local.sum(axis=1, keepdims=True)
        rows = numpy.where(sums > 0, local / numpy.maximum(sums, 1e-300), trusted)
        trust = trusted
        for _ in range(50):
            trust = (1 - RESTART) * trust @ rows + RESTART * trusted
        return weighted(ranged, {name: float(trust[place[name]]) for name in names})


@dataclass
class AftRule:
    """Ours: the weight that follows from the score; newcomers serve in the shadow."""

    name: ClassVar[str] = "aft"
    has_courts: ClassVar[bool] = True
    scores: Scores | None = field(default=None)

    def pools(self, book: Book, nodes: Iterable[Node], anchors: Collection[str], settings: Settings) -> list[Pool]:
        """Say by range who serves."""
        scores = self.scores = score(book.evidence(), anchors, max(0, book.epoch - 1))
        pools = []
        for members in by_range(nodes, settings):
            live = [(node, weight) for node in members if (weight := scores.weight(node.name))]
            shadow = [node for node in members if scores.standing(node.name).is_newcomer]
            if len(live) < settings.min_established:
                live += [(node, ONE // 2) for node in shadow]
                shadow = []
            pools.append(Pool([node for node, _ in live], list(accumulate(weight for _, weight in live)), shadow))
        return pools


RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (RandomRule, PointsRule, BetaRule, EigenTrustRule, AftRule)
}  # fmt: skip
"""By name."""
