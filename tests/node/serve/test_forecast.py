"""What a machine and a swarm would give: the law, its largest term, and what is missing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dht.identity import Identity
from dht.records import Announcement, ServerState
from node.errors import DoesNotFit
from node.serve.forecast import (
    CLIENT_OVERHEAD_S,
    BlockWork,
    Factor,
    Machine,
    Rate,
    StepCost,
    Term,
    Weakest,
    capacity,
    client_s,
    generation_rate,
    hops_s,
    judge_fit,
    machines_needed,
    span_rate,
    stage_s,
    step_cost,
    still_missing,
    weakest,
)
from node.serve.placement import MIB, WORKING_BYTES, plan_memory

OWNER = Identity.ephemeral().peer_id
SECONDS = some.floats(0, 10)
RATES = some.floats(1e6, 1e13)
MACHINES = some.builds(Machine, RATES, RATES, SECONDS, SECONDS)
BLOCKS = some.lists(some.builds(BlockWork, some.integers(0, 2**34), some.floats(0, 1e12)), min_size=1, max_size=5)
COSTS = some.builds(StepCost, SECONDS, SECONDS)
OTHERS = some.lists(some.tuples(some.text(min_size=1, max_size=3), SECONDS), max_size=4)
SIZES = some.lists(some.integers(1, 64 * MIB), min_size=1, max_size=8)
NUM_BLOCKS = 8
SPANS = some.tuples(some.integers(0, NUM_BLOCKS - 1), some.integers(1, NUM_BLOCKS)).map(
    lambda pair: (min(pair[0], pair[1] - 1), max(pair[0] + 1, pair[1]))
)


def server(start, end, milli, state=ServerState.ONLINE, queue_us=0, owner=OWNER):
    return Announcement(
        manifest=bytes(32), shard=0, owner=owner, t=1, life_s=60, state=state, start=start, end=end, dtype="float32",
        throughput_milli=milli, max_length=0, cache_free_tokens=0, addresses=(), version="0", queue_us=queue_us,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- memory


@given(SIZES, some.integers(0, 600 * MIB), some.one_of(some.none(), some.integers(1, 8)), some.integers(0, 40 * MIB))
def test_nothing_is_missing_exactly_where_a_server_would_start(sizes, free, wanted, ends):
    fit = judge_fit(free, sizes, wanted, ends)
    try:
        assert fit.plan == plan_memory(free, sizes, wanted, ends)
        assert fit.missing_bytes == 0
        assert fit.num_blocks == fit.plan.num_blocks
    except DoesNotFit:
        assert fit.plan is None
        assert fit.missing_bytes == fit.needed_bytes - free > 0


@given(SIZES, some.integers(0, WORKING_BYTES), some.one_of(some.none(), some.integers(1, 8)))
def test_with_what_is_missing_added_it_fits_and_with_a_little_less_it_does_not(sizes, free, wanted):
    missing = judge_fit(free, sizes, wanted).missing_bytes
    assert judge_fit(free + missing, sizes, wanted).plan is not None
    assert judge_fit(free + missing - 4, sizes, wanted).plan is None


@given(SIZES, some.integers(0, 900 * MIB), some.integers(0, 100 * MIB))
def test_more_memory_never_holds_fewer_blocks(sizes, free, more):
    def held(free_bytes):
        fit = judge_fit(free_bytes, sizes, None)
        return fit.num_blocks if fit.plan else 0

    assert held(free + more) >= held(free)


# --------------------------------------------------------------------------------------------------- this machine


def test_a_block_costs_the_larger_of_reading_and_multiplying_and_its_overhead():
    machine = Machine(bytes_per_s=100, flops_per_s=10, block_overhead_s=0.5, step_overhead_s=0.25)
    read, multiplied = BlockWork(200, 10), BlockWork(100, 30)
    assert step_cost(machine, [read]) == StepCost(memory_s=2, compute_s=0.75)
    assert step_cost(machine, [multiplied]) == StepCost(memory_s=0, compute_s=3.75)
    assert step_cost(machine, [read, multiplied]).total_s == 2 + 3 + 2 * 0.5 + 0.25


@given(MACHINES, BLOCKS, some.floats(1, 100))
def test_a_faster_machine_is_never_slower(machine, blocks, times):
    base = step_cost(machine, blocks).total_s
    slack = base * 1e-9 + 1e-15
    faster_memory = Machine(
        machine.bytes_per_s * times, machine.flops_per_s, machine.block_overhead_s, machine.step_overhead_s
    )
    faster_compute = Machine(
        machine.bytes_per_s, machine.flops_per_s * times, machine.block_overhead_s, machine.step_overhead_s
    )
    assert step_cost(faster_memory, blocks).total_s <= base + slack
    assert step_cost(faster_compute, blocks).total_s <= base + slack


@given(MACHINES, BLOCKS)
def test_more_blocks_never_cost_less(machine, blocks):
    whole = step_cost(machine, blocks).total_s
    assert step_cost(machine, blocks[:-1]).total_s <= whole * (1 + 1e-9)


# -------------------------------------------------------------------------------------------------- one generation


@given(COSTS, OTHERS, SECONDS, SECONDS)
def test_with_equal_round_trips_a_token_takes_what_the_latency_law_says(own, others, round_trip_s, asks_s):
    num_stages = len(others) + 1
    rate = generation_rate(own, others, [round_trip_s] * (num_stages + 1), asks_s)
    compute_s = own.total_s + sum(seconds for _, seconds in others) + asks_s
    assert rate.token_s == pytest.approx(compute_s + (num_stages + 1) * round_trip_s / 2)


@given(COSTS, OTHERS, some.lists(SECONDS, min_size=2, max_size=6), SECONDS)
def test_the_limit_is_the_largest_term_and_no_mend_of_it_gives_more_than_is_said(own, others, trips, asks_s):
    rate = generation_rate(own, others, trips, asks_s)
    assert all(term.seconds <= rate.limit.seconds for term in rate.terms)
    assert rate.limit in rate.terms
    assert rate.tokens_per_s <= rate.tokens_per_s_without_limit
    assert rate.token_s == 0 or rate.tokens_per_s == pytest.approx(1 / rate.token_s)


@given(COSTS, OTHERS, some.lists(SECONDS, min_size=2, max_size=6), SECONDS, SECONDS)
def test_longer_round_trips_and_slower_servers_never_give_more_tokens(own, others, trips, asks_s, more_s):
    rate = generation_rate(own, others, trips, asks_s).tokens_per_s
    farther = generation_rate(own, others, [trip + more_s for trip in trips], asks_s)
    slower = generation_rate(own, [(who, seconds + more_s) for who, seconds in others], trips, asks_s)
    assert farther.tokens_per_s <= rate
    assert slower.tokens_per_s <= rate


@pytest.mark.parametrize(
    ("own", "others", "trip_s", "asks_s", "factor"),
    [
        (StepCost(4, 1), [("a", 1)], 1, 1, Factor.MEMORY),
        (StepCost(1, 4), [("a", 1)], 1, 1, Factor.COMPUTE),
        (StepCost(1, 1), [("a", 1), ("b", 4)], 1, 1, Factor.SERVER),
        (StepCost(1, 1), [("a", 1)], 4, 1, Factor.ROUND_TRIP),
        (StepCost(1, 1), [("a", 1)], 1, 4, Factor.CLIENT),
    ],
)
def test_every_factor_can_be_the_limit(own, others, trip_s, asks_s, factor):
    limit = generation_rate(own, others, [trip_s, trip_s], asks_s).limit
    assert limit.factor is factor
    assert limit.who == ("b" if factor is Factor.SERVER else "")


def test_a_route_without_this_machine_has_no_part_of_it():
    rate = generation_rate(None, [("a", 2.0)], [1.0, 1.0], 0.5)
    assert [term.factor for term in rate.terms] == [Factor.SERVER, Factor.ROUND_TRIP, Factor.CLIENT]
    assert rate.token_s == 3.5


def test_a_server_that_says_it_does_nothing_stops_the_forecast_and_not_the_program():
    rate = generation_rate(None, [("a", stage_s(server(0, 2, 0), 2)), ("b", 1.0)], [1.0, 1.0, 1.0], 0.5)
    assert rate.tokens_per_s == 0
    assert rate.limit == Term(Factor.SERVER, math.inf, "a")
    assert rate.tokens_per_s_without_limit == 1 / 3


def test_a_stage_costs_its_share_of_the_announced_rate_and_its_queue():
    assert stage_s(server(0, 4, 8000), 4) == 0.5
    assert stage_s(server(0, 4, 8000, queue_us=250_000), 2) == 0.5


def test_a_client_pays_for_its_head():
    assert client_s(100, 50.0) == 2 + CLIENT_OVERHEAD_S


def test_the_span_alone_has_the_rate_of_its_step():
    assert span_rate(StepCost(0.3, 0.2)) == Rate((Term(Factor.MEMORY, 0.3), Term(Factor.COMPUTE, 0.2)))
    assert span_rate(StepCost(0.3, 0.2)).tokens_per_s == 2


@pytest.mark.parametrize(
    ("trips", "here", "hops"),
    [
        ([0.2], [False], [0.2, 0.2]),
        ([None], [True], [0.01, 0.01]),
        ([0.2, None, 0.4], [False, True, False], [0.2, 0.2, 0.4, 0.4]),
        ([0.2, 0.4], [False, False], [0.2, 0.4, 0.4]),
        ([0.2, None], [False, False], [0.2, 0.2, 0.2]),
    ],
)
def test_hops_lead_from_here_through_the_stages_and_back(trips, here, hops):
    assert hops_s(trips, here, 0.01) == hops


# ------------------------------------------------------------------------------------------------------- the swarm


def test_a_server_shares_its_rate_among_its_blocks_and_only_those_online_count():
    joining = server(0, 8, 99000, ServerState.JOINING, owner="joining")
    servers = [server(0, 2, 4000, owner="first"), server(1, 9, 8000, owner="second"), joining]
    assert capacity(servers, 4) == [2, 3, 1, 1]
    assert weakest([2, 3, 1, 1]) == Weakest(2, 4, 1)
    assert weakest([0, 0, 1, 0]) == Weakest(0, 2, 0)


@given(some.lists(SPANS, max_size=4), SPANS)
def test_what_is_still_missing_is_what_was_missing_outside_the_span(gaps, span):
    def blocks(ranges):
        return [block for start, end in ranges for block in range(start, end)]

    assert blocks(still_missing(gaps, span)) == [block for block in blocks(gaps) if not span[0] <= block < span[1]]
    assert all(start < end for start, end in still_missing(gaps, span))


@pytest.mark.parametrize(
    ("missing", "size", "count"),
    [([], 2, 0), ([(0, 4)], 2, 2), ([(0, 5)], 2, 3), ([(0, 1), (2, 3)], 3, 1), ([(0, 1), (3, 5)], 3, 2)],
)
def test_machines_are_counted_that_cover_what_is_missing(missing, size, count):
    assert machines_needed(missing, size) == count


@given(some.sets(some.integers(0, NUM_BLOCKS - 1)), some.integers(1, NUM_BLOCKS))
def test_so_many_machines_suffice_and_each_block_needs_no_more_than_one(blocks, size):
    count = machines_needed([(block, block + 1) for block in sorted(blocks)], size)
    assert math.ceil(len(blocks) / size) <= count <= len(blocks)
