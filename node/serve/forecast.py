"""What a machine, and a swarm with it, would give: figures in, a verdict out. Pure.

    one token =  client + own blocks + other servers + round trips
    own block =  max(bytes of its weights / bytes_per_s, flops / flops_per_s) + overhead

Between S stages that push to each other lie S + 1 hops of half a round trip, client to client. The figures are rough by
nature: short texts, one session alone, machines that do nothing else. Does not know who measures, what a model is, or
which route a client takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dht.records import Announcement
from node.errors import DoesNotFit
from node.serve.balance import read_holdings, supplies
from node.serve.placement import DEFAULT_CACHE_SHARE, WORKING_BYTES, MemoryPlan, plan_memory

CLIENT_OVERHEAD_S = 0.002
"""What a client's program takes for a token besides its head, s: embedding, sampling, transformers' own loop. As on the
machine of docs/benchmarks.md."""


# --------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether weights fit, in numbers."""

    plan: MemoryPlan | None
    """How the memory would be divided; None: it does not fit."""
    num_blocks: int
    """Blocks that fit, or else the number that was looked at: those asked for, or one."""
    needed_bytes: int
    """The least memory with which ``num_blocks`` fit, work space included."""
    free_bytes: int
    """What there is."""

    @property
    def missing_bytes(self) -> int:
        """What there is too little of; 0 where it fits."""
        return max(0, self.needed_bytes - self.free_bytes)


def judge_fit(free_bytes: int, block_bytes: list[int], num_wanted: int | None, end_bytes: int = 0) -> Fit:
    """Say whether blocks fit, as ``plan_memory`` decides it, and by how much they do not; arguments as there."""
    try:
        plan = plan_memory(free_bytes, block_bytes, num_wanted, end_bytes)
    except DoesNotFit:
        count = num_wanted or 1
        return Fit(None, count, _needed_bytes(block_bytes, num_wanted, end_bytes), free_bytes)
    needed = _needed_bytes(block_bytes, num_wanted or plan.num_blocks, end_bytes)
    return Fit(plan, plan.num_blocks, needed, free_bytes)


def _needed_bytes(block_bytes: list[int], num_wanted: int | None, end_bytes: int) -> int:
    """Return the least free memory that ``plan_memory`` is content with; None wanted: for one block and its caches."""
    largest = max(block_bytes)
    for_blocks = math.ceil(largest / (1 - DEFAULT_CACHE_SHARE)) if num_wanted is None else num_wanted * largest
    return WORKING_BYTES + end_bytes + for_blocks + 1  # The last one is for rounding, and for some cache at all.


# --------------------------------------------------------------------------------------------------------- this machine


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured of one machine."""

    bytes_per_s: float
    """Weights that multiplications of one row read, as the span would hold them."""
    flops_per_s: float
    """Of a multiplication that is bound by arithmetic; a multiplication and an addition are two."""
    block_overhead_s: float
    """What a block costs besides its weights: Python, launching kernels, norms, a short attention."""
    step_overhead_s: float
    """What a step costs besides its blocks."""


@dataclass(frozen=True, slots=True)
class BlockWork:
    """What one token asks of one block."""

    read_bytes: int
    """Weights that are read: of experts, those that one token passes."""
    flops: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one token costs on one machine, s; the two add up."""

    memory_s: float
    """Of the blocks whose weights take longer to read than to multiply."""
    compute_s: float
    """Of the others, and of everything that is neither."""

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.memory_s + self.compute_s


def step_cost(machine: Machine, blocks: Sequence[BlockWork]) -> StepCost:
    """Return what one token through ``blocks`` costs."""
    memory_s = 0.0
    compute_s = machine.step_overhead_s + len(blocks) * machine.block_overhead_s
    for block in blocks:
        reading_s, multiplying_s = block.read_bytes / machine.bytes_per_s, block.flops / machine.flops_per_s
        if reading_s >= multiplying_s:
            memory_s += reading_s
        else:
            compute_s += multiplying_s
    return StepCost(memory_s, compute_s)


# ------------------------------------------------------------------------------------------------------- one generation


class Factor(StrEnum):
    """What a token waits for."""

    COMPUTE = "compute"
    MEMORY = "memory bandwidth"
    ROUND_TRIP = "round trip"
    SERVER = "another server"
    CLIENT = "the client"


@dataclass(frozen=True, slots=True)
class Term:
    """One part of the time of a token."""

    factor: Factor
    seconds: float
    who: str = ""
    """The server, where it is one."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast tokens come, and of what their time is made."""

    terms: tuple[Term, ...]

    @property
    def token_s(self) -> float:
        """Time of one token."""
        return sum(term.seconds for term in self.terms)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of one session per second."""
        return _inverse(self.token_s)

    @property
    def limit(self) -> Term:
        """The largest term; the first among equals."""
        return max(self.terms, key=lambda term: term.seconds)

    @property
    def tokens_per_s_without_limit(self) -> float:
        """What would come if the largest term were nothing: no mend of it can give more."""
        limit = self.limit
        return _inverse(sum(term.seconds for term in self.terms if term is not limit))


def span_rate(own: StepCost) -> Rate:
    """Return the rate of one span alone, nothing else counted."""
    return Rate((Term(Factor.MEMORY, own.memory_s), Term(Factor.COMPUTE, own.compute_s)))


def generation_rate(
    own: StepCost | None, others: Sequence[tuple[str, float]], round_trips_s: Sequence[float], client_s: float
) -> Rate:
    """Return the rate of one session through a route.

    Args:
        own: what this machine's stage costs; None: it is not in the route.
        others: the other stages: who, and what a token costs there, s.
        round_trips_s: of every hop, client to client: one more than there are stages.
        client_s: what the client itself takes for a token, s.
    """
    terms = [*span_rate(own).terms] if own is not None else []
    terms += [Term(Factor.SERVER, seconds, who) for who, seconds in others]
    terms += [Term(Factor.ROUND_TRIP, sum(round_trips_s) / 2), Term(Factor.CLIENT, client_s)]
    return Rate(tuple(terms))


def stage_s(server: Announcement, num_blocks: int) -> float:
    """Return what a token costs in ``num_blocks`` blocks of a server, by its own word, s; inf where it said none."""
    return num_blocks * _inverse(server.throughput_milli / 1000) + server.queue_us / 1e6


def client_s(head_bytes: int, bytes_per_s: float) -> float:
    """Return what a token costs a client that holds a head of so many bytes, s."""
    return CLIENT_OVERHEAD_S + head_bytes / bytes_per_s


def hops_s(round_trips_s: Sequence[float | None], here: Sequence[bool], loopback_s: float) -> list[float]:
    """Return the round trip of every hop of a route that is asked from this machine, s.

    Two other servers are taken to be as far from each other as the farther one is from here: nobody here can tell.

    Args:
        round_trips_s: from here to each stage, None where it is not known; of a stage that is here it does not count.
        here: which stages are this machine's own.
        loopback_s: the round trip between two processes of this machine.
    """
    far = [0.0, *(0.0 if own else trip for trip, own in zip(round_trips_s, here, strict=True)), 0.0]
    known = [trip for trip in far if trip is not None]
    assumed = [max(known) if trip is None else trip for trip in far]
    return [max(pair) or loopback_s for pair in itertools.pairwise(assumed)]


# ------------------------------------------------------------------------------------------------------------ the swarm


@dataclass(frozen=True, slots=True)
class Weakest:
    """The blocks that the swarm serves slowest."""

    start: int
    end: int
    tokens_per_s: float
    """Of all sessions together."""


def capacity(servers: Sequence[Announcement], num_blocks: int) -> list[float]:
    """Return the tokens per second that each block can take from all sessions together, of servers that are online."""
    held = (holding for holding in read_holdings(servers, num_blocks) if holding.is_online)
    return [milli / 1000 for milli in supplies(held, num_blocks)]


def weakest(tokens_per_s: Sequence[float]) -> Weakest:
    """Return the first run of blocks that can take the least."""
    least = min(tokens_per_s)
    start = end = list(tokens_per_s).index(least)
    while end < len(tokens_per_s) and tokens_per_s[end] == least:
        end += 1
    return Weakest(start, end, least)


def still_missing(missing: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[tuple[int, int]]:
    """Return what is left of missing ranges when somebody takes ``span``."""
    parts = [part for start, end in missing for part in ((start, min(end, span[0])), (max(start, span[1]), end))]
    return [(start, end) for start, end in parts if start < end]


def machines_needed(missing: Sequence[tuple[int, int]], num_blocks: int) -> int:
    """Return how many machines of ``num_blocks`` consecutive blocks each cover ranges that are in order."""
    count, covered = 0, 0
    for start, end in missing:
        while (first := max(start, covered)) < end:
            count, covered = count + 1, first + num_blocks
    return count


def _inverse(value: float) -> float:
    return 1 / value if value > 0 else math.inf
