"""Where blocks are needed, and who moves when."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.records import Announcement, ServerState
from node.serve.balance import (
    LOOK_AHEAD,
    MAX_CLAIM,
    Move,
    carried_rate,
    choose_span,
    plan_moves,
    read_holdings,
    supplies,
)
from node.serve.patience import PATIENCE_S, RELUCTANT_S, Patience

JOINING, ONLINE = ServerState.JOINING, ServerState.ONLINE


def server(owner, start, end, rate, state=ONLINE, t=0):
    """``rate``: what it gives to all of its blocks together, block-tokens/s."""
    return Announcement(
        manifest=bytes(32), shard=0, owner=owner, t=t, life_s=60, state=state, start=start, end=end, dtype="float32",
        throughput_milli=int(rate * 1000), max_length=0, cache_free_tokens=0, addresses=(), version="",
    )  # fmt: skip


@st.composite
def swarms(draw, max_servers=12):
    num_blocks = draw(st.integers(1, 12))
    servers = []
    for number in range(draw(st.integers(0, max_servers))):
        count = draw(st.integers(1, num_blocks))
        start = draw(st.integers(0, num_blocks - count))
        state = draw(st.sampled_from([ONLINE, ONLINE, ONLINE, *ServerState]))
        servers.append(server(f"peer{number:02}", start, start + count, draw(st.integers(0, 400)), state))
    return num_blocks, servers


def given_to(servers, num_blocks):
    return supplies(read_holdings(servers, num_blocks), num_blocks)


def test_a_server_goes_where_supply_is_lowest_and_not_where_servers_are_fewest():
    one_fast, three_slow = server("fast", 0, 2, 100), [server(f"slow{n}", 2, 4, 10) for n in range(3)]
    assert choose_span([one_fast, *three_slow], 4, 2) == (2, 4)


def test_the_first_server_takes_the_first_blocks():
    assert choose_span([], 8, 3) == (0, 3)


@pytest.mark.parametrize("state", [ServerState.DRAINING, ServerState.PAUSED, ServerState.OFFLINE])
def test_servers_that_take_no_sessions_do_not_count(state):
    assert choose_span([server("a", 0, 2, 9, state), server("b", 2, 4, 1)], 4, 2) == (0, 2)


def test_servers_that_load_their_first_blocks_count_with_the_median_rate():
    unmeasured, slow, fast = server("a", 0, 2, 0, JOINING), server("b", 2, 4, 10), server("c", 4, 6, 30)
    assert given_to([unmeasured, slow, fast], 6) == [5000, 5000, 5000, 5000, 15000, 15000]


def test_of_a_false_claim_no_more_counts_than_a_multiple_of_the_median():
    honest = [server(f"honest{n}", 0, 1, 10) for n in range(3)]
    assert given_to([*honest, server("liar", 1, 2, 2**47 / 1000)], 2) == [30_000, MAX_CLAIM * 10_000]


def test_a_peer_that_announces_twice_counts_once_with_what_it_said_last():
    twice = [server("a", 0, 1, 10, t=7), server("a", 1, 2, 10, t=8)]
    assert given_to(twice, 2) == given_to(twice[::-1], 2) == [0, 10_000]


def test_blocks_outside_the_model_are_ignored():
    assert given_to([server("a", 1, 4, 30), server("b", 9, 12, 30)], 2) == [0, 10_000]


def test_a_network_bounds_the_rate_that_is_announced():
    assert carried_rate(100, 4, math.inf) == 100
    assert carried_rate(100, 4, 20) == 80
    assert carried_rate(100, 4, 30) == 100


@given(swarms(), st.data())
def test_no_other_window_leaves_better_supplies_whatever_the_rate(swarm, data):
    num_blocks, servers = swarm
    count = data.draw(st.integers(1, num_blocks))
    share = data.draw(st.integers(1, 500_000))
    supply = given_to(servers, num_blocks)

    def sorted_after(start):
        return sorted(value + share * (start <= block < start + count) for block, value in enumerate(supply))

    start, end = choose_span(servers, num_blocks, count)
    assert 0 <= start < end == start + count <= num_blocks
    assert sorted_after(start) == max(sorted_after(other) for other in range(num_blocks - count + 1))


@given(swarms(), st.data())
def test_the_order_of_servers_does_not_matter(swarm, data):
    num_blocks, servers = swarm
    shuffled = data.draw(st.permutations(servers))
    assert plan_moves(shuffled, num_blocks) == plan_moves(servers, num_blocks)
    assert choose_span(shuffled, num_blocks, 1) == choose_span(servers, num_blocks, 1)


@settings(max_examples=200)
@given(swarms(), st.floats(1, 2), st.data())
def test_moves_stay_inside_the_model_and_reach_the_gain_without_lowering_the_bottleneck_meanwhile(swarm, gain, data):
    num_blocks, servers = swarm
    moves = plan_moves(servers, num_blocks, min_gain=gain)
    present = min(given_to(servers, num_blocks))
    places = {one.owner: one for one in servers}
    assert len(moves) <= LOOK_AHEAD
    assert len({move.owner for move in moves}) == len(moves)
    for move in moves:
        assert places[move.owner].state is ONLINE
        assert 0 <= move.start < move.end <= num_blocks
        assert move.end - move.start == places[move.owner].end - places[move.owner].start
    if moves:
        held = {holding.owner: holding for holding in read_holdings(servers, num_blocks)}
        moved = [
            *(holding for owner, holding in held.items() if owner not in {move.owner for move in moves}),
            *(replace(held[move.owner], start=move.start, end=move.end) for move in moves),
        ]
        assert min(supplies(moved, num_blocks)) > present * gain
        some = data.draw(st.sets(st.sampled_from([move.owner for move in moves])))
        staying = [holding for owner, holding in held.items() if owner not in some]
        assert min(supplies(staying, num_blocks)) >= present


@given(swarms())
def test_no_block_is_left_without_anyone_by_a_move_while_the_model_is_whole(swarm):
    num_blocks, servers = swarm
    moves = plan_moves(servers, num_blocks)
    online = Counter(block for one in servers if one.state is ONLINE for block in range(one.start, one.end))
    still = [one for one in servers if one.state is ONLINE and one.owner not in {move.owner for move in moves}]
    if len(online) == num_blocks:
        assert {block for one in still for block in range(one.start, one.end)} == set(online)


def crowded(weak_rate):
    """Four blocks; the first two have three servers of 30, the last two one of ``weak_rate``."""
    return [*(server(f"many{n}", 0, 2, 30) for n in range(3)), server("one", 2, 4, weak_rate)]


def test_one_of_many_servers_goes_where_supply_is_low():
    assert plan_moves(crowded(10), 4) == (Move("many0", 2, 4),)


def test_nobody_moves_for_a_gain_below_the_factor():
    assert plan_moves(crowded(28), 4, min_gain=1.05) == (Move("many0", 2, 4),)
    assert plan_moves(crowded(28), 4, min_gain=2.2) == ()
    assert plan_moves(crowded(62), 4, min_gain=1) == ()


def test_two_weak_places_are_filled_by_two_servers_although_neither_lifts_the_bottleneck_alone():
    servers = [*(server(f"many{n}", 0, 1, 10) for n in range(4)), server("b", 1, 2, 10), server("c", 2, 3, 10)]
    assert plan_moves(servers, 3) == (Move("many0", 1, 2), Move("many1", 2, 3))


def test_who_loads_is_counted_where_it_will_be_and_does_not_move_again():
    servers = crowded(10)
    (move,) = plan_moves(servers, 4)
    servers[0] = server(move.owner, move.start, move.end, 30, JOINING)
    assert plan_moves(servers, 4) == ()
    only_loading = [replace(one, state=JOINING) for one in crowded(10)]
    assert plan_moves(only_loading, 4) == ()


def test_the_only_server_of_a_block_stays_even_where_another_block_has_none():
    assert plan_moves([server("a", 0, 2, 10)], 4) == ()
    assert plan_moves([server("a", 0, 1, 10), server("b", 1, 3, 10)], 4) == ()


def test_the_only_server_of_a_block_moves_where_it_fills_an_empty_one_and_comes_back_to_its_own():
    assert plan_moves([server("a", 0, 2, 10), server("b", 1, 3, 10)], 4) == (Move("b", 2, 4),)


def test_who_loads_does_not_replace_the_only_server_of_a_block():
    servers = [*crowded(10)[2:], server("loading", 0, 2, 60, JOINING)]
    assert plan_moves(servers, 4) == ()
    assert plan_moves([*servers[:2], replace(servers[2], state=ONLINE)], 4) != ()


def test_where_nobody_serves_nobody_moves():
    assert plan_moves([], 4) == ()


def test_who_lets_its_turn_pass_is_passed_over_for_a_while():
    patience, servers = Patience(), crowded(10)
    assert patience.plan_move(servers, "many0", 4, 0) == Move("many0", 2, 4)
    assert patience.plan_move(servers, "many1", 4, PATIENCE_S - 1) is None
    assert patience.plan_move(servers, "many1", 4, PATIENCE_S) is None
    assert patience.plan_move(servers, "many1", 4, PATIENCE_S + 1) == Move("many1", 2, 4)
    assert patience.reluctant(PATIENCE_S + 1) == {"many0"}
    assert patience.reluctant(PATIENCE_S + RELUCTANT_S) == frozenset()


def test_a_turn_of_long_ago_is_forgotten():
    patience, servers = Patience(), crowded(10)
    for now_s in (0, 3 * PATIENCE_S):
        assert patience.plan_move(servers, "many0", 4, now_s) is not None
    assert patience.reluctant(3 * PATIENCE_S) == frozenset()
