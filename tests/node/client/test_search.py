"""No server comes twice in a route: the search finds the best one all the same, and a way out where it is long."""

import time

import pytest
from hypothesis import given, settings

from node.client.offers import MAX_OFFERS, Objective, Part, Policy
from node.client.plan import make_plan
from node.client.route import as_route
from node.client.search import first_twice, search
from node.client.table import price_of
from tests.node.client.announcements import all_routes, cost_us, question, server, turns_of
from tests.node.client.test_plan import questions

SLOW, FAST = 20_000, 100_000_000


def slow_at_both_ends(*others):
    """Return servers of which the slow one alone holds the first and the last block."""
    return [server("slow", 0, 8, throughput=SLOW), *others]


@pytest.mark.parametrize(
    "others",
    [
        [server("fast", 1, 7, throughput=FAST)],
        [server("fast", 1, 7, throughput=FAST), server("last", 5, 8, throughput=SLOW // 2)],
        [server("fast", 1, 7, throughput=FAST), server("first", 0, 3, throughput=SLOW // 2)],
        [server("fast", 1, 7, throughput=FAST), server("first", 0, 1, queue_us=90_000), server("last", 7, 8)],
    ],
)
def test_a_server_that_is_wanted_at_both_ends_is_used_at_one_or_all_through(others):
    asked = question(slow_at_both_ends(*others))
    turns = turns_of(as_route(make_plan(asked)))
    assert len({owner for owner, _, _ in turns}) == len(turns)
    assert cost_us(asked, turns) == min(cost_us(asked, other) for other in all_routes(asked))


def test_a_way_that_holds_the_server_already_is_passed_over_for_one_that_does_not():
    others = server("fast", 1, 7, throughput=FAST), server("rest", 1, 8, queue_us=250_000)
    plan = make_plan(question(slow_at_both_ends(*others)))
    found = search(plan.graph, 0)
    assert [plan.offers[run.server].server.owner for run in found.runs] == ["slow", "rest"]
    assert found.price == price_of(plan.graph, found.runs) == plan.found.price


def test_where_no_problem_may_be_solved_any_more_the_route_is_still_one_with_no_server_twice():
    asked = question(slow_at_both_ends(server("fast", 1, 7, throughput=FAST)))
    found = search(make_plan(asked).graph, 0)
    assert [run.server for run in found.runs] == [1]


@settings(max_examples=200)
@given(questions())
def test_a_search_that_may_not_go_on_finds_a_route_with_no_server_twice_and_its_true_price(asked):
    plan = make_plan(asked)
    if plan is None:
        return
    found = search(plan.graph, 0)
    if found is not None:
        assert first_twice(found.runs) is None
        assert found.price == price_of(plan.graph, found.runs) >= plan.found.price


def test_a_model_of_more_blocks_than_servers_may_change_at_is_covered_as_cheaply_as_its_spans_allow():
    part = Part(4096, 0, 4096, needs_ends=False)
    servers = [server("a", 0, 1001, throughput=FAST), server("b", 900, 3333), server("c", 3000, 4096, throughput=FAST)]
    assert turns_of(as_route(make_plan(question(servers, part=part)))) == [
        ("a", 0, 1001),
        ("b", 1001, 3000),
        ("c", 3000, 4096),
    ]


def seconds_to_plan(num_servers, num_blocks, policy):
    """Return the least of three times that it takes to plan over servers of all the blocks, each of another speed."""
    servers = [
        server(f"p{at:03}", at % 7, num_blocks - at % 5, throughput=10**6 + 1000 * (at * 37 % 101))
        for at in range(num_servers)
    ]
    servers.append(server("all", 0, num_blocks, throughput=10**5))
    asked = question(servers, part=Part(num_blocks, 0, num_blocks, needs_ends=False), policy=policy)
    times = []
    for _ in range(3):
        began_s = time.perf_counter()
        make_plan(asked)
        times.append(time.perf_counter() - began_s)
    return min(times)


@pytest.mark.parametrize(("objective", "factor"), [(Objective.FASTEST, 60), (Objective.WIDEST, 120)])
def test_four_times_the_servers_and_blocks_take_no_longer_than_the_programme_s_sums_say(objective, factor):
    small, large = (seconds_to_plan(servers, blocks, Policy(objective)) for servers, blocks in ((50, 20), (200, 80)))
    print(f"{objective}: 50 servers on 20 blocks {1e3 * small:.1f} ms, 200 on 80 {1e3 * large:.1f} ms")
    assert large < factor * max(small, 0.001)


def test_beyond_a_number_more_servers_take_no_longer():
    few, many = (seconds_to_plan(servers, 24, Policy()) for servers in (MAX_OFFERS, 4 * MAX_OFFERS))
    assert many < 5 * max(few, 0.01)
