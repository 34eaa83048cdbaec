"""What a swarm would be with this machine in it: look at it, measure this machine, hand both to ``serve.forecast``.

Serves nothing, stores nothing, reads no weight. The look runs on the event loop, measuring in a thread after it, so
that neither disturbs the other. Does not know how the outcome is told (``node.run.forecast_words`` does).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dht.directory import Directory, read_directory
from dht.errors import DhtError
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import Announcement, ServerState
from dht.swarm import Swarm
from node.client.latencies import Latencies
from node.client.offers import FASTEST
from node.client.route import Stage, plan_route
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import find_end_parameters
from node.run.machine import Probe, measure_machine, measure_reading
from node.run.serve_plan import ServePlan
from node.serve.balance import choose_span
from node.serve.forecast import (
    BlockWork,
    Machine,
    Rate,
    Weakest,
    capacity,
    client_s,
    generation_rate,
    hops_s,
    machines_needed,
    span_rate,
    stage_s,
    step_cost,
    still_missing,
    weakest,
)

MAX_PINGED = 8
"""Servers whose round trip is measured; the others are taken to be as far as the farthest of them."""
PING_S = 3.0
"""How long all of that may take, s."""
_PINGS = 3
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class _Look:
    """What was seen of the swarm."""

    directory: Directory
    span: tuple[int, int]
    """Blocks that this machine would take."""
    before: tuple[Stage, ...]
    after: tuple[Stage, ...]
    """Stages of a route around ``span``; both empty where blocks are missing."""
    today: tuple[Stage, ...]
    """Stages of a route without this machine; empty where blocks are missing."""
    round_trips_s: dict[str, float]
    """To the servers that answered."""


@dataclass(frozen=True)
class StageForecast:
    """One stage of the route that was looked at."""

    peer_id: str | None
    """None: this machine."""
    start: int
    end: int
    seconds: float
    """What a token costs there, s."""
    round_trip_s: float | None
    """From here; None: it did not answer, or was not asked."""


@dataclass(frozen=True)
class JoinForecast:
    """What joining would give."""

    span: tuple[int, int]
    read_bytes: int
    """Weights that would be read, from disk or from a hub."""
    machine: Machine
    own: Rate
    """Of the span alone."""
    num_servers: int
    """Online now."""
    num_joining: int
    missing: tuple[tuple[int, int], ...]
    """Blocks without a server today."""
    weakest: Weakest
    """Today."""
    weakest_with: Weakest
    still_missing: tuple[tuple[int, int], ...]
    """Blocks without a server even with this machine."""
    more_machines: int
    """Machines like this one that these blocks would take."""
    stages: tuple[StageForecast, ...]
    """Of the route with this machine in it; empty where blocks are missing."""
    generation: Rate | None
    """Of one session through that route."""
    today: Rate | None
    """Of one session through the swarm as it is; None where it cannot generate."""
    num_unmeasured: int
    """Other servers of the route whose round trip is not known."""


async def forecast_join(plan: ServePlan, join: JoinCode, loopback_s: float) -> JoinForecast:
    """Look at a swarm and say what it would be with this machine in it.

    Args:
        plan: the model, and how this machine would serve it.
        join: the swarm.
        loopback_s: round trip between two processes of this machine, s.

    Raises:
        DhtError: the swarm cannot be reached, or does not admit us.
        UnavailableError: a hub does not answer.
    """
    checkpoint = plan.checkpoint
    manifest = await asyncio.to_thread(lambda: checkpoint.manifest32)
    look = await _look(join, manifest, checkpoint.num_blocks, plan)
    work = await asyncio.to_thread(block_work, checkpoint, plan.weights.block_bytes)
    machine, client_bytes_per_s, head_bytes = await asyncio.to_thread(_measure, plan, work)
    asks_s = client_s(head_bytes, client_bytes_per_s)
    return _judge(checkpoint, look, machine, work, asks_s, loopback_s)


async def _look(join: JoinCode, manifest: bytes, num_blocks: int, plan: ServePlan) -> _Look:
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        directory = await read_directory(swarm, manifest, time.time())
        start, end = plan.span or choose_span(directory.servers, num_blocks, plan.memory.num_blocks)
        missing = directory.missing(num_blocks)
        left = still_missing(missing, (start, end))
        before = () if left else _cover(directory, num_blocks, 0, start)
        after = () if left else _cover(directory, num_blocks, end, num_blocks)
        today = () if missing else _cover(directory, num_blocks, 0, num_blocks)
        peers = dict.fromkeys(stage.peer_id for stage in (*before, *after, *today))
        round_trips_s = await _ping(swarm, list(peers)[:MAX_PINGED])
    return _Look(directory, (start, end), before, after, today, round_trips_s)


def _cover(directory: Directory, num_blocks: int, start: int, end: int) -> tuple[Stage, ...]:
    """Return the stages that a client would take for the blocks ``[start, end)``; none where there are none."""
    latencies = Latencies.of(directory.servers, {})
    return plan_route(directory, latencies, {}, FASTEST, num_blocks=num_blocks, start=start, end=end).stages


async def _ping(swarm: Swarm, peers: Sequence[str]) -> dict[str, float]:
    """Return the round trips to those that answer in time."""
    found: dict[str, float] = {}

    async def ping(peer: str) -> None:
        try:
            found[peer] = statistics.median([await swarm.ping(peer) for _ in range(_PINGS)])
        except DhtError:
            return  # It is counted as not measured.

    tasks = [asyncio.create_task(ping(peer)) for peer in peers]
    if tasks:
        await asyncio.wait(tasks, timeout=PING_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


def block_work(checkpoint: Checkpoint, block_bytes: Sequence[int]) -> list[BlockWork]:
    """Return what one token asks of every block, whose weights take ``block_bytes``; reads headers only."""
    share = active_share(checkpoint.config.get_text_config())
    whole, active = [0] * checkpoint.num_blocks, [0.0] * checkpoint.num_blocks
    for name, num_bytes in checkpoint.tensor_bytes(torch.float32).items():
        block = checkpoint.block_names.block_of(name)
        if block is not None and block < checkpoint.num_blocks:
            whole[block] += num_bytes
            active[block] += num_bytes * (share if ".experts." in name else 1)
    return [
        BlockWork(int(held * used / total), 2 * used / torch.float32.itemsize)
        for held, used, total in zip(block_bytes, active, whole, strict=True)
    ]


def active_share(config: Any) -> float:
    """Return the share of a block's experts that one token passes; 1 where there are none."""
    passed = next((getattr(config, name) for name in _EXPERTS_PER_TOKEN if getattr(config, name, None)), None)
    experts = next((getattr(config, name) for name in _EXPERTS if getattr(config, name, None)), None)
    if not isinstance(passed, int) or not isinstance(experts, int):
        return 1.0
    return min(1.0, passed / experts)


def _measure(plan: ServePlan, work: Sequence[BlockWork]) -> tuple[Machine, float, int]:
    """Return this machine's figures, those of a client's head on its CPU, and the bytes of that head."""
    checkpoint = plan.checkpoint
    width = int(checkpoint.config.get_text_config().hidden_size)
    largest = max(block.read_bytes for block in work)
    weights, cpu = plan.weights, torch.device("cpu")
    set_bytes = plan.memory.num_blocks * largest
    machine = measure_machine(Probe(weights.device, weights.dtype, weights.scheme, width, set_bytes))
    head = find_end_parameters(checkpoint.config).exit
    head_bytes = checkpoint.client_bytes(torch.float32, parameters=head)
    with torch.inference_mode():
        client_bytes_per_s = measure_reading(Probe(cpu, torch.float32, None, width, head_bytes))
    return machine, client_bytes_per_s, head_bytes


def _judge(
    checkpoint: Checkpoint, look: _Look, machine: Machine, work: Sequence[BlockWork], asks_s: float, loopback_s: float
) -> JoinForecast:
    num_blocks, servers, (start, end) = checkpoint.num_blocks, look.directory.servers, look.span
    own = step_cost(machine, work[start:end])
    missing = look.directory.missing(num_blocks)
    left = still_missing(missing, look.span)
    now = capacity(servers, num_blocks)
    with_us = [rate + (start <= block < end) / own.total_s for block, rate in enumerate(now)]
    stages = () if left else _stages(look, own.total_s)

    def rate(route: Sequence[StageForecast]) -> Rate:
        trips = [stage.round_trip_s for stage in route]
        here = [stage.peer_id is None for stage in route]
        others = [(stage.peer_id, stage.seconds) for stage in route if stage.peer_id is not None]
        return generation_rate(own if any(here) else None, others, hops_s(trips, here, loopback_s), asks_s)

    def count(state: ServerState) -> int:
        return sum(server.state is state for server in servers)

    return JoinForecast(
        span=look.span,
        read_bytes=checkpoint.span_bytes(start, end),
        machine=machine,
        own=span_rate(own),
        num_servers=count(ServerState.ONLINE),
        num_joining=count(ServerState.JOINING),
        missing=tuple(missing),
        weakest=weakest(now),
        weakest_with=weakest(with_us),
        still_missing=tuple(left),
        more_machines=machines_needed(left, end - start),
        stages=tuple(stages),
        generation=rate(stages) if stages else None,
        today=rate([_other(look, stage) for stage in look.today]) if look.today else None,
        num_unmeasured=sum(stage.peer_id is not None and stage.round_trip_s is None for stage in stages),
    )


def _stages(look: _Look, own_s: float) -> list[StageForecast]:
    before, after = ([_other(look, stage) for stage in route] for route in (look.before, look.after))
    return [*before, StageForecast(None, *look.span, own_s, None), *after]


def _other(look: _Look, stage: Stage) -> StageForecast:
    seconds = stage_s(_announcement_of(look, stage), stage.end - stage.start)
    return StageForecast(stage.peer_id, stage.start, stage.end, seconds, look.round_trips_s.get(stage.peer_id))


def _announcement_of(look: _Look, stage: Stage) -> Announcement:
    return next(server for server in look.directory.servers if server.owner == stage.peer_id)
