"""Announcements are bounded: no word of a server makes it free, and none is lost that is needed."""

import pytest

from dht.identity import Identity
from dht.records import MAX_ROUND_TRIP_US, ServerState
from node.client.offers import (
    MAX_BLOCK_US,
    MAX_OFFERS,
    MIN_BLOCK_US,
    Objective,
    Part,
    Policy,
    block_us,
    bounded_number,
    cover,
    newest,
    offer_of,
    why_not,
)
from node.errors import UserError
from tests.node.client.announcements import EVERYONE, server

ALL = Part(8, 0, 8, needs_ends=False)


@pytest.mark.parametrize(
    ("throughput", "expected_us"),
    [(1_000_000, 1_000), (3_000_000, 334), (2**48, MIN_BLOCK_US), (0, MAX_BLOCK_US), (1, MAX_BLOCK_US)],
)
def test_the_time_of_a_block_is_the_announced_rate_s_within_bounds(throughput, expected_us):
    assert block_us(server("a", 0, 8, throughput=throughput)) == expected_us


@pytest.mark.parametrize(("score", "expected_us"), [(1.0, 1_000), (0.5, 2_000), (7.0, 1_000), (1e-300, MAX_BLOCK_US)])
def test_a_peer_of_half_the_score_costs_twice_its_time(score, expected_us):
    assert block_us(server("a", 0, 8), score) == expected_us


def test_a_liar_s_time_falls_under_its_score_too():
    assert block_us(server("a", 0, 8, throughput=2**48), 0.01) == 100 * MIN_BLOCK_US


def test_of_two_announcements_of_one_peer_the_newer_counts_whatever_their_order():
    old, new = server("a", 0, 8, t=1), server("a", 0, 4, t=2)
    assert newest([old, new]) == newest([new, old]) == [new]
    twins = server("a", 0, 8, t=2)
    assert newest([twins, new]) == newest([new, twins])


def test_every_reason_not_to_use_a_server_is_said():
    assert why_not(server("a", 0, 8), EVERYONE, {}, {}) is None
    assert why_not(server("a", 0, 8, state=ServerState.DRAINING), EVERYONE, {}, {}) == "not online (draining)"
    assert "allowed" in why_not(server("a", 0, 8), Policy(only=frozenset("b")), {}, {})
    assert why_not(server("a", 0, 8), EVERYONE, {}, {"a": "failed 3 s ago: gone"}) == "failed 3 s ago: gone"
    assert "score" in why_not(server("a", 0, 8), EVERYONE, {"a": 0.0}, {})


def test_a_queue_beyond_the_bound_is_cut():
    assert offer_of(server("a", 0, 8, queue_us=2**60), ALL, 1.0).queue_us == MAX_ROUND_TRIP_US


def test_of_many_servers_the_cheap_ones_stay_and_those_that_cover_what_others_lack():
    many = [server(f"p{number:04}", 0, 7, throughput=10**7 + number) for number in range(400)]
    offers = [offer_of(entry, ALL, 1.0) for entry in (*many, server("x", 7, 8, throughput=1))]
    kept = bounded_number(offers, ALL)
    assert len(kept) == MAX_OFFERS
    assert cover(kept, 0, 8) is not None
    assert [offer for offer in offers if offer in kept] == kept


def test_a_policy_is_made_of_names_and_says_what_is_wrong_with_them():
    peer = Identity.ephemeral().peer_id
    assert Policy.of("widest", [peer]) == Policy(Objective.WIDEST, frozenset({peer}))
    assert Policy.of("fastest", None) == EVERYONE
    with pytest.raises(UserError, match="no policy cheapest; use one of fastest, widest"):
        Policy.of("cheapest", None)
    with pytest.raises(UserError, match="status --json"):
        Policy.of("fastest", ["not a peer"])
