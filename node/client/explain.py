"""Why a route runs where it runs: every server of the directory, what it would cost, and why it was not taken.

Pure. It never raises for what a peer announced: whatever that is, the person who asks wants to read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dht.records import Announcement
from node.client.offers import Objective, block_us, newest, why_not
from node.client.plan import Plan, Question, make_plan
from node.client.route import Route, as_route
from node.client.search import cheapest_through, first_twice
from node.client.table import Found


@dataclass(frozen=True, slots=True)
class Candidate:
    """One server, as the plan saw it."""

    peer_id: str
    start: int
    """First block that it announces."""
    end: int
    """One past the last one."""
    block_us: int
    """Time of one token in one block, as announced, within bounds, its score counted in, us."""
    queue_us: int
    """How long a step waits before it is computed, as announced, us."""
    round_trip_us: int | None
    """Between it and the client, us; None: not measured."""
    taken: tuple[int, int] | None
    """The blocks that the route takes of it; None: none."""
    cost_us: int | None
    """One token through the best route that it is part of, us; None: there is none."""
    reason: str
    """Why it was not taken; empty if it was."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why this route."""

    objective: Objective
    cost_us: int | None
    """Expected time of one token, us; None: there is no route, or it is not one that was planned."""
    slowest_us: int | None
    """For a widest route, what its slowest stage may compute for a token, us; else None."""
    candidates: tuple[Candidate, ...]
    """All servers of the directory, by first block, then peer id."""


def explain(question: Question, route: Route | None = None) -> Explanation:
    """Say of every server whether a route takes it, what it would cost, and why it was not taken.

    Args:
        question: what was asked, of which swarm.
        route: the route that was opened, if it is known; None: the one that the plan would be.
    """
    plan = make_plan(question) if question.part.start < question.part.end else None
    planned = as_route(plan) if plan is not None else None
    shown = planned if route is None else route
    taken = {stage.peer_id: (stage.start, stage.end) for stage in shown.stages} if shown else {}
    through = _through(plan) if plan is not None else {}
    cost_us = plan.found.cost_us if plan is not None and shown == planned else None
    candidates = [
        _candidate(question, plan, server, taken.get(server.owner), through.get(server.owner), cost_us)
        for server in newest(question.directory.servers)
    ]
    candidates.sort(key=lambda candidate: (candidate.start, candidate.peer_id))
    slowest_us = plan.slowest_us if plan is not None else None
    return Explanation(question.policy.objective, cost_us, slowest_us, tuple(candidates))


def _through(plan: Plan) -> dict[str, Found]:
    """Return the cheapest route through each server that could be used, if one is known."""
    found = zip(plan.offers, cheapest_through(plan.graph), strict=True)
    return {offer.server.owner: chain for offer, chain in found if chain is not None}


def _candidate(
    question: Question,
    plan: Plan | None,
    server: Announcement,
    taken: tuple[int, int] | None,
    through: Found | None,
    cost_us: int | None,
) -> Candidate:
    score = question.scores.get(server.owner, 1.0)
    offer = question.offer(server, score)
    is_known = through is not None and first_twice(through.runs) is None
    best_us = through.cost_us if through is not None and is_known else None
    barred = why_not(server, question.policy, question.scores, question.left_out)
    if taken is not None:
        reason, best_us = "", cost_us
    else:
        reason = barred if barred is not None else _why_not_taken(question, plan, server, through, cost_us)
    return Candidate(
        peer_id=server.owner,
        start=server.start,
        end=server.end,
        block_us=block_us(server, score if score > 0 else 1.0),
        queue_us=offer.queue_us,
        round_trip_us=question.latencies.own_us.get(server.owner),
        taken=taken,
        cost_us=best_us,
        reason=reason,
    )


def _why_not_taken(
    question: Question, plan: Plan | None, server: Announcement, through: Found | None, cost_us: int | None
) -> str:
    """Say why a server that could be used was not."""
    offer = question.offer(server, 1.0)
    if offer.start >= offer.end:
        lacking = "neither embeds token ids nor computes logits, and " if question.part.needs_ends else ""
        if server.owner in question.spans:
            return "it is a newcomer, and what is asked of its blocks has three established servers or more"
        return f"it {lacking}has no block that is asked for"
    if plan is None:
        return "its blocks are of no use without those that nobody holds"
    if server.owner not in {known.server.owner for known in plan.offers}:
        return "it costs more per block than the servers that were considered"
    if through is None:
        assert plan.slowest_us is not None  # Without a bound there is a way through every server.
        return f"any route through it has a stage that takes over {_ms(plan.slowest_us)} for a token"
    if first_twice(through.runs) is not None:
        return "the best route through it would use another server twice"
    best = f"the best route through it takes {_ms(through.cost_us)}"
    if cost_us is None:
        return best
    more_us = through.cost_us - cost_us
    if more_us > 0:
        return f"{best}, {_ms(more_us)} more"
    return f"{best}, no less, and with more stages or a higher peer id" if more_us == 0 else best


def _ms(us: int) -> str:
    return f"{us / 1000:.1f} ms"
