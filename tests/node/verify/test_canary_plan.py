"""Everyone's turn comes, and a route through the chosen few cannot go around who is to be checked."""

import random

from hypothesis import given
from hypothesis import strategies as st

from node.verify.canary_plan import Guise, Held, can_cover, draw_guise, in_turn, peers_through

NUM_BLOCKS = 6
SPANS = [(start, end) for start in range(NUM_BLOCKS) for end in range(start + 1, NUM_BLOCKS + 1)]


def swarm_of(spans):
    return [Held(f"peer{number}", *span) for number, span in enumerate(spans)]


swarms = st.lists(st.sampled_from(SPANS), min_size=1, max_size=8).map(swarm_of)


def test_the_drawing():
    a, b, c, d = Held("a", 0, 2), Held("b", 1, 3), Held("c", 2, 4), Held("d", 3, 4)
    checked_s = {"a": 3600.0, "b": 0.0, "c": 7000.0, "d": 7000.0}
    assert in_turn([a, b, c, d], checked_s, random.Random(0))[0] is b
    assert peers_through(b, [a, b, c, d], 4) == {"a", "b", "d"}


@given(swarms, st.randoms(use_true_random=False))
def test_each_server_has_had_its_turn_before_any_has_a_second_one(servers, chance):
    checked_s = {}
    turns = []
    for now_s in range(2 * len(servers)):
        first = in_turn(servers, checked_s, chance)[0]
        turns.append(first.peer_id)
        checked_s[first.peer_id] = float(now_s)
    everyone = sorted(held.peer_id for held in servers)
    assert sorted(turns[: len(servers)]) == sorted(turns[len(servers) :]) == everyone


@given(swarms)
def test_the_chosen_cover_the_model_and_there_are_none_only_where_nobody_could(servers):
    for target in servers:
        chosen = peers_through(target, servers, NUM_BLOCKS)
        assert (chosen is None) == (not can_cover(servers, NUM_BLOCKS))
        if chosen is not None:
            assert target.peer_id in chosen
            assert can_cover([held for held in servers if held.peer_id in chosen], NUM_BLOCKS)


@given(swarms)
def test_nobody_goes_around_a_server_where_others_that_hold_none_of_its_blocks_hold_all_the_rest(servers):
    for target in servers:
        apart = [held for held in servers if not held.overlap(target.start, target.end)]
        if not can_cover([target, *apart], NUM_BLOCKS):
            continue
        chosen = peers_through(target, servers, NUM_BLOCKS)
        others = [held for held in servers if held.peer_id in chosen and held is not target]
        assert not can_cover(others, NUM_BLOCKS)


def test_the_order_of_those_that_were_never_checked_is_drawn():
    servers = swarm_of([(0, NUM_BLOCKS)] * 8)
    orders = {tuple(held.peer_id for held in in_turn(servers, {}, random.Random(seed))) for seed in range(20)}
    assert len(orders) > 10


def test_canaries_go_without_weights_in_one_of_three_where_every_server_has_the_ends_that_it_could_be_asked_for():
    servers = [Held("a", 0, 2, has_ends=True), Held("b", 2, 4, has_ends=True)]
    drawn = [draw_guise(servers, random.Random(seed)) for seed in range(600)]
    assert {guise: round(drawn.count(guise) / 100) for guise in Guise} == {
        Guise.WITH_ENDS: 4, Guise.ASKS_LOGITS: 1, Guise.ASKS_TOKENS: 1
    }  # fmt: skip
    servers.append(Held("c", 2, 4))
    assert {draw_guise(servers, random.Random(seed)) for seed in range(40)} == {Guise.WITH_ENDS}
