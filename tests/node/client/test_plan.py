"""Plans against all routes there are: none is cheaper, none is wider, and no server comes twice."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.directory import Directory
from node.client.latencies import Latencies
from node.client.offers import Objective, Policy
from node.client.plan import make_plan
from node.client.route import as_route
from tests.node.client.announcements import (
    NUM_BLOCKS,
    all_routes,
    cost_us,
    question,
    server,
    slowest_us,
    turns_of,
)

MAX_SERVERS = 5
PEERS = [f"peer{number}" for number in range(MAX_SERVERS)]
round_trips = st.sampled_from([0, 300, 5_000, 40_000])

spans = st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, NUM_BLOCKS)).map(lambda pair: (pair[0], sum(pair)))


@st.composite
def questions(draw):
    """A directory that covers the model, or does not, with round trips as wild as they come."""
    number = draw(st.integers(1, MAX_SERVERS))
    servers = [
        server(
            PEERS[at],
            *draw(spans),
            throughput=draw(st.sampled_from([100_000, 500_000, 1_000_000, 4_000_000])),
            queue_us=draw(st.sampled_from([0, 0, 1_000, 30_000])),
        )
        for at in range(number)
    ]
    own = draw(st.dictionaries(st.sampled_from(PEERS), round_trips))
    announced = draw(st.dictionaries(st.tuples(st.sampled_from(PEERS), st.sampled_from(PEERS)), round_trips))
    scores = draw(st.dictionaries(st.sampled_from(PEERS), st.sampled_from([0.3, 0.5, 1.0])))
    return question(servers, Latencies(own, announced), scores=scores)


@settings(max_examples=300)
@given(questions())
def test_no_route_is_cheaper_than_the_planned_one_and_none_as_cheap_has_fewer_stages(asked):
    plan, routes = make_plan(asked), list(all_routes(asked))
    if plan is None:
        assert not routes
        return
    turns = turns_of(as_route(plan))
    assert turns in routes
    assert (cost_us(asked, turns), len(turns)) == min((cost_us(asked, other), len(other)) for other in routes)
    assert plan.found.cost_us == cost_us(asked, turns)


@settings(max_examples=150)
@given(questions())
def test_no_route_is_wider_than_the_widest_and_none_as_wide_is_faster(asked):
    asked = replace(asked, policy=Policy(Objective.WIDEST), scores={})
    plan, routes = make_plan(asked), list(all_routes(asked))
    if plan is None:
        assert not routes
        return
    turns = turns_of(as_route(plan))
    assert turns in routes
    least_us = min(slowest_us(asked, other) for other in routes)
    assert slowest_us(asked, turns) <= plan.slowest_us == least_us
    assert cost_us(asked, turns) == min(
        cost_us(asked, other) for other in routes if slowest_us(asked, other) == least_us
    )


@settings(max_examples=60)
@given(questions(), st.randoms())
def test_the_order_of_announcements_does_not_matter(asked, chance):
    shuffled = list(asked.directory.servers)
    chance.shuffle(shuffled)
    other = replace(asked, directory=Directory(asked.directory.manifest, tuple(shuffled)))
    for policy in (Policy(), Policy(Objective.WIDEST)):
        one, two = make_plan(replace(asked, policy=policy)), make_plan(replace(other, policy=policy))
        assert (one is None) == (two is None)
        if one is not None:
            assert as_route(one) == as_route(two)
