"""Every server of the directory is in the explanation, with what it costs and why it was not taken."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.records import EMBEDS, HEADS, ServerState
from node.client.explain import explain
from node.client.latencies import Latencies
from node.client.offers import Objective, Part, Policy
from node.client.plan import make_plan
from node.client.route import Route, as_route
from tests.node.client.announcements import NUM_BLOCKS, all_routes, cost_us, question, server
from tests.node.client.test_plan import questions


def told(servers, **other):
    """Return the candidates by peer id."""
    return {entry.peer_id: entry for entry in explain(question(servers, **other)).candidates}


def test_what_is_taken_costs_what_was_planned_and_the_rest_says_how_much_more():
    servers = [server("a", 0, 8), server("b", 0, 8, throughput=500_000), server("c", 4, 8)]
    candidates = told(servers, latencies=Latencies.of(servers, dict.fromkeys("abc", 4_000)))
    assert (candidates["a"].taken, candidates["a"].cost_us, candidates["a"].reason) == ((0, 8), 14_000, "")
    assert candidates["b"].reason == "the best route through it takes 19.0 ms, 5.0 ms more"
    assert candidates["c"].reason == "the best route through it takes 18.0 ms, 4.0 ms more"
    assert [candidates[peer].round_trip_us for peer in "abc"] == [4_000] * 3


def test_an_equal_is_told_from_a_worse_one():
    assert told([server("a", 0, 8), server("b", 0, 8)])["b"].reason.endswith("with more stages or a higher peer id")


def test_each_reason_has_its_words():
    servers = [
        server("a", 0, 8),
        server("bad", 0, 8),
        server("drains", 0, 8, state=ServerState.DRAINING),
        server("failed", 0, 8),
        server("stranger", 0, 8),
        server("beyond", 40, 50),
    ]
    policy = Policy(only=frozenset({"a", "bad", "drains", "failed", "beyond"}))
    candidates = told(servers, policy=policy, scores={"bad": 0.0}, left_out={"failed": "failed 3 s ago: gone"})
    assert candidates["bad"].reason == "its score excludes it"
    assert candidates["drains"].reason == "not online (draining)"
    assert candidates["failed"].reason == "failed 3 s ago: gone"
    assert candidates["stranger"].reason == "not among the peers that were allowed"
    assert "no block that is asked for" in candidates["beyond"].reason
    assert all(entry.taken is None for peer, entry in candidates.items() if peer != "a")


def test_without_a_route_what_there_is_is_of_no_use():
    explanation = explain(question([server("a", 0, 4)]))
    assert explanation.cost_us is None
    assert explanation.candidates[0].reason == "its blocks are of no use without those that nobody holds"


def test_a_server_that_could_only_stand_between_two_turns_of_another_says_so():
    assert "twice" in told([server("a", 0, 8), server("b", 2, 6)])["b"].reason


def test_an_end_that_is_lacking_is_named():
    part = Part(NUM_BLOCKS, 0, NUM_BLOCKS, needs_ends=True)
    servers = [server("a", 0, 8, ends=EMBEDS | HEADS), server("b", 0, 1)]
    assert "neither embeds" in told(servers, part=part)["b"].reason


def test_a_route_that_was_opened_otherwise_is_shown_as_it_is():
    asked = question([server("a", 0, 8), server("b", 0, 8, throughput=500_000)])
    opened = as_route(make_plan(question([server("b", 0, 8)])))
    explanation = explain(asked, opened)
    assert {entry.peer_id: entry.taken for entry in explanation.candidates} == {"a": None, "b": (0, 8)}
    assert explanation.cost_us is None
    assert explanation.candidates[0].reason.startswith("the best route through it takes")


def test_the_widest_route_s_bound_is_said_of_those_that_would_break_it():
    servers = [*(server(name, 0, 8) for name in "abcd"), server("slow", 0, 8, throughput=100_000)]
    explanation = explain(question(servers, policy=Policy(Objective.WIDEST)))
    assert explanation.slowest_us == 2_000
    assert explanation.candidates[-1].reason == "any route through it has a stage that takes over 2.0 ms for a token"


@settings(max_examples=100)
@given(questions())
def test_the_cost_through_each_server_is_the_best_of_all_routes_through_it(asked):
    plan, explanation = make_plan(asked), explain(asked)
    assert explanation.cost_us == (plan.found.cost_us if plan else None)
    for entry in explanation.candidates:
        costs = [cost_us(asked, turns) for turns in all_routes(asked) if entry.peer_id in {turn[0] for turn in turns}]
        if entry.cost_us is not None:
            assert entry.cost_us == min(costs)
        assert (entry.reason == "") == (entry.taken is not None)


wild = st.sampled_from([0, 1, 4095, 2**48])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 4096), wild, st.sampled_from(ServerState)), max_size=5))
def test_nothing_that_is_announced_makes_it_raise(offers):
    servers = [
        server(f"p{at}", start, min(4096, start + length), throughput=rate, queue_us=rate, state=state)
        for at, (start, length, rate, state) in enumerate(offers)
    ]
    for objective in Objective:
        asked = question(servers, policy=Policy(objective))
        assert len(explain(asked).candidates) == len(servers)
        assert len(explain(replace(asked, part=Part(8, 0, 0, needs_ends=False)), Route(())).candidates) == len(servers)


@pytest.mark.parametrize("start", [0, NUM_BLOCKS])
def test_a_route_over_no_blocks_takes_nobody(start):
    candidates = told([server("a", 0, 8)], part=Part(NUM_BLOCKS, start, start, needs_ends=False))
    assert candidates["a"].taken is None
