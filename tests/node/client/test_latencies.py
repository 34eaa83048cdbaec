"""What is believed of round trips, and how little a liar gains by announcing short ones."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.records import MAX_ROUND_TRIP_US
from node.client.latencies import CLIENT, UNKNOWN_ROUND_TRIP_US, Latencies
from tests.node.client.announcements import server


def test_between_client_and_server_only_what_the_client_measured_counts():
    liar = server("liar", 0, 8, neighbours=[("other", 1)])
    assert Latencies.of([liar], {"liar": 70_000}).round_trip_us(CLIENT, "liar") == 70_000


def test_who_was_not_measured_is_as_far_as_the_median_and_nobody_gains_by_dodging_pings():
    latencies = Latencies.of([], {"a": 1_000, "b": 30_000, "c": 90_000})
    assert latencies.round_trip_us(CLIENT, "unknown") == latencies.round_trip_us("unknown", CLIENT) == 30_000
    assert Latencies.of([], {}).round_trip_us(CLIENT, "unknown") == UNKNOWN_ROUND_TRIP_US


def test_a_pair_of_which_nothing_is_known_lies_in_the_middle_of_what_is_possible():
    latencies = Latencies.of([], {"a": 10_000, "b": 30_000})
    assert latencies.round_trip_us("a", "b") == ((30_000 - 10_000) + (30_000 + 10_000)) / 2


@pytest.mark.parametrize(
    ("says", "other_says", "believed"),
    [(25_000, None, 25_000), (None, 25_000, 25_000), (1, None, 20_000), (1, 22_000, 22_000), (50_000, 1, 50_000)],
)
def test_a_word_is_believed_from_the_difference_of_the_client_s_own_on_and_the_longer_of_two_counts(
    says, other_says, believed
):
    servers = [
        server("a", 0, 4, neighbours=[("b", says)] if says else []),
        server("b", 4, 8, neighbours=[("a", other_says)] if other_says else []),
    ]
    latencies = Latencies.of(servers, {"a": 10_000, "b": 30_000})
    assert latencies.round_trip_us("a", "b") == latencies.round_trip_us("b", "a") == believed


def test_a_word_about_a_server_that_the_client_has_not_measured_makes_it_no_nearer():
    for words, believed in (([("b", 1)], 30_000), ([("b", 80_000)], 80_000)):
        servers = [server("a", 0, 4, neighbours=words), server("b", 4, 8)]
        assert Latencies.of(servers, {"b": 30_000}).round_trip_us("a", "b") == believed


round_trips = st.integers(0, MAX_ROUND_TRIP_US)


@given(round_trips, round_trips, round_trips)
def test_lies_about_a_pair_save_no_more_than_the_nearer_end_is_away(near, far, lie):
    honest = Latencies.of([server("a", 0, 4), server("b", 4, 8)], {"a": near, "b": far})
    lying = Latencies.of([server("a", 0, 4, neighbours=[("b", lie)]), server("b", 4, 8)], {"a": near, "b": far})
    assert honest.round_trip_us("a", "b") - lying.round_trip_us("a", "b") <= min(near, far)


@given(
    st.dictionaries(st.sampled_from("abcd"), round_trips),
    st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), round_trips),
)
def test_the_table_says_the_same_as_the_single_answers(own, announced):
    latencies = Latencies(own, announced, 12_345)
    table = latencies.between("abcd")
    for (row, one), (column, other) in itertools.product(enumerate("abcd"), enumerate("abcd")):
        if one != other:
            assert table[row, column] == latencies.round_trip_us(one, other)
