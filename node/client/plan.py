"""From what is known of a swarm to the cheapest chain of servers: prices, the search, and the widest route.

Pure. One token through S stages costs the blocks' times, a fixed price and a queue per stage, and S + 1 half round
trips: to the first server, between servers that stand next to each other, and back (stages push to each other).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dht.directory import Directory
from dht.records import Announcement
from node.client.latencies import CLIENT, Latencies
from node.client.offers import (
    STAGE_OVERHEAD_US,
    Objective,
    Offer,
    Part,
    Policy,
    bounded_number,
    cover,
    newest,
    offer_of,
    why_not,
)
from node.client.search import search
from node.client.table import Found, Graph, Numbers, Run, price, price_of
from node.client.widest import widest

NUM_CUTS = 128
"""Servers may change at every block of a model of so many; of longer ones where spans begin and end, and in between."""
_UNBOUNDED = 2**40


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that a plan depends on."""

    directory: Directory
    latencies: Latencies
    scores: Mapping[str, float]
    """Of peers, in (0, 1]; 0 excludes, none counts as 1."""
    policy: Policy
    part: Part
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Peers not to use, and why, for people."""
    before: str = CLIENT
    """The peer from which the first stage takes its steps."""
    after: str = CLIENT
    """The peer to which the last stage hands on."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Peers of which some blocks alone may be used, and which."""

    def offer(self, server: Announcement, score: float) -> Offer:
        """Return what a route may take of ``server``."""
        return offer_of(server, self.part, score, self.spans.get(server.owner))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The chain that was found, and between what."""

    offers: tuple[Offer, ...]
    """Servers that could be used, by peer id; the runs' servers are places in it."""
    graph: Graph
    found: Found
    slowest_us: int | None
    """Time that the slowest stage of a widest route may take for a token; None: that was no aim."""


def usable_offers(question: Question) -> tuple[Offer, ...]:
    """Return what a route may use of each server, by peer id; servers that give nothing are left out."""
    scores, policy = question.scores, question.policy
    offers = [
        question.offer(server, scores.get(server.owner, 1.0))
        for server in newest(question.directory.servers)
        if why_not(server, policy, scores, question.left_out) is None
    ]
    return tuple(offer for offer in offers if offer.start < offer.end)


def make_plan(question: Question) -> Plan | None:
    """Find the best chain; None: some blocks have no server."""
    part = question.part
    usable = usable_offers(question)
    fewest = cover(usable, part.start, part.end)
    if fewest is None:
        return None
    offers = tuple(bounded_number(list(usable), part))
    graph = _graph(question, offers)
    fallback = _as_found(graph, offers, fewest)
    if question.policy.objective is Objective.WIDEST:
        slowest_us, bounded, found = widest(graph, [offer.block_us for offer in offers], fallback)
        return Plan(offers, bounded, found, slowest_us)
    return Plan(offers, graph, search(graph) or fallback, None)


def _graph(question: Question, offers: Sequence[Offer]) -> Graph:
    peers = [offer.server.owner for offer in offers]
    latencies, part = question.latencies, question.part
    cuts = _cuts(offers, part)
    starts, ends = _column(offer.start for offer in offers), _column(offer.end for offer in offers)
    fixed = _column(STAGE_OVERHEAD_US + offer.queue_us for offer in offers)
    first = _column(latencies.round_trip_us(question.before, peer) for peer in peers)
    last = _column(latencies.round_trip_us(peer, question.after) for peer in peers)
    return Graph(
        cuts=cuts,
        may_run=(starts <= cuts[:-1, None]) & (cuts[1:, None] <= ends),
        block=price(_column(offer.block_us for offer in offers)),
        fixed=price(fixed, num_stages=1),
        first=price(_half(first)),
        last=price(_half(last)),
        hops=price(_half(latencies.between(peers))),
        max_run=np.full(len(offers), _UNBOUNDED, dtype=np.int64),
    )


def _column(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, dtype=np.int64)


def _half(round_trips_us: Numbers) -> Numbers:
    return (round_trips_us + 1) // 2


def _cuts(offers: Sequence[Offer], part: Part) -> Numbers:
    length = part.end - part.start
    if length <= NUM_CUTS:
        return np.arange(part.start, part.end + 1, dtype=np.int64)
    grid = {part.start + length * at // NUM_CUTS for at in range(NUM_CUTS + 1)}
    return np.array(sorted(grid.union(*((offer.start, offer.end) for offer in offers))), dtype=np.int64)


def _as_found(graph: Graph, offers: Sequence[Offer], chain: Sequence[Offer]) -> Found:
    """Return a chain of offers, each used as far as it goes, with its price."""
    places = {offer.server.owner: at for at, offer in enumerate(offers)}
    ends = [int(np.searchsorted(graph.cuts, offer.end)) for offer in chain]
    runs = [
        Run(begin, end, places[offer.server.owner]) for begin, end, offer in zip([0, *ends], ends, chain, strict=False)
    ]
    return Found(price_of(graph, runs), tuple(runs))
