"""Choose the servers that a session runs through. Pure: what is known of a swarm in, a route out.

``offers`` says what each server may be used for and at what price, ``latencies`` what a way costs, ``search`` finds the
cheapest chain, ``plan`` puts them together, ``explain`` tells people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dht.directory import Directory
from dht.records import Announcement, ServerState
from node.client.latencies import CLIENT, Latencies
from node.client.offers import Part, Policy
from node.client.plan import Plan, Question, make_plan, usable_offers
from node.errors import MissingBlocks


@dataclass(frozen=True, slots=True)
class Stage:
    """One span of a route."""

    peer_id: str
    start: int
    end: int
    addresses: tuple[str, ...]
    drift_class: str = field(default="", compare=False)
    """What decides how its results are rounded: dtype of the weights and version of the software."""
    weights: str = field(default="", compare=False)
    """What its weights are held in, as it announces it."""

    def __str__(self) -> str:
        return f"{self.start}:{self.end} on {self.peer_id}"


@dataclass(frozen=True, slots=True)
class Route:
    """Stages that cover the model's blocks in order, without gap or overlap."""

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return ", ".join(str(stage) for stage in self.stages)


def plan_route(
    directory: Directory,
    latencies: Latencies,
    scores: Mapping[str, float],
    policy: Policy,
    *,
    num_blocks: int,
    avoid: Collection[str] = (),
    needs_ends: bool = False,
    start: int = 0,
    end: int | None = None,
    before: str = CLIENT,
    after: str = CLIENT,
) -> Route:
    """Cover blocks at the least cost; among equals take the fewest stages, then the lower ids. No peer comes twice.

    Args:
        directory: who serves what now.
        latencies: round trips.
        scores: of peers, in (0, 1]: a peer of score s costs 1 / s of its time; 0 excludes, no score counts as 1.
        policy: what the route shall be best at, and who may be used.
        num_blocks: blocks of the model.
        avoid: peers not to use.
        needs_ends: whether the first stage must embed token ids and the last one compute logits. A server that does not
            is then used without the model's first or last block.
        start: first block to cover.
        end: one past the last block to cover; None: all of them.
        before: the peer from which the first stage takes its steps.
        after: the peer to which the last stage hands on.

    Raises:
        MissingBlocks: some blocks have no usable server; the message names them.
    """
    part = Part(num_blocks, start, num_blocks if end is None else end, needs_ends)
    left_out = dict.fromkeys(avoid, "to be avoided")
    return route_of(Question(directory, latencies, scores, policy, part, left_out, before, after))


def route_of(question: Question) -> Route:
    """Answer ``question``, as ``plan_route`` does.

    Raises:
        MissingBlocks: some blocks have no usable server; the message names them.
    """
    if question.part.start >= question.part.end:
        return Route(())
    plan = make_plan(question)
    if plan is None:
        raise MissingBlocks(_missing_message(question))
    return as_route(plan)


def as_route(plan: Plan) -> Route:
    """Return the stages of a plan."""
    stages = []
    for run in plan.found.runs:
        begin, end = int(plan.graph.cuts[run.begin]), int(plan.graph.cuts[run.end])
        stages.append(stage_of(plan.offers[run.server].server, begin, end))
    return Route(tuple(stages))


def stage_of(server: Announcement, start: int, end: int) -> Stage:
    """Return the stage that a server is for the blocks ``[start, end)``."""
    drift_class = f"{server.dtype} {server.version}"
    return Stage(server.owner, start, end, tuple(server.addresses), drift_class, server.dtype)


def _missing_message(question: Question) -> str:
    """Say which blocks nobody holds, or nobody who may be used, or which end nobody offers."""
    part, only = question.part, question.policy.only
    held = {block for offer in usable_offers(question) for block in range(offer.start, offer.end)}
    missing = [block for block in range(part.start, part.end) if block not in held]
    online = [server for server in question.directory.servers if server.state is ServerState.ONLINE]
    allowed = [server for server in online if server.owner not in question.left_out]
    if part.needs_ends and _hold(missing, [server for server in allowed if only is None or server.owner in only]):
        lacking = "embeds token ids" if 0 not in held else "computes logits"
        return (
            f"All blocks have servers, but none of them {lacking} for clients without weights; generate without --thin "
            "(thin=True), or start a server of that end without --no-ends."
        )
    listed = _in_words(missing)
    if only is not None and _hold(missing, allowed):
        return (
            f"None of the {len(only)} peers that were allowed holds the blocks {listed} of {part.num_blocks}; allow "
            "others as well with --only PEER_ID (only_peers), or leave it out."
        )
    return (
        f"No server holds the blocks {listed} of {part.num_blocks}; start one with `efedllm serve MODEL --join CODE "
        f"--blocks {listed.split(', ')[0]}`, or wait for one to come back."
    )


def _hold(blocks: Iterable[int], servers: Collection[Announcement]) -> bool:
    return all(any(server.start <= block < server.end for server in servers) for block in blocks)


def _in_words(blocks: Iterable[int]) -> str:
    """Return rising blocks as half-open ranges."""
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] = block + 1
        else:
            ranges.append([block, block + 1])
    return ", ".join(f"{start}:{end}" for start, end in ranges)
