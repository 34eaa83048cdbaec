"""Pools are of one server, hold all that was judged, and say nothing before they hold eight."""

import math

from hypothesis import given
from hypothesis import strategies as st

from node.verify.ratio_pools import MAX_CHUNKS, MAX_POOLS, RatioPools


@given(st.lists(st.floats(0, 10), min_size=1, max_size=MAX_CHUNKS), st.floats(1, 3))
def test_a_server_fails_when_the_mean_of_eight_or_more_is_above_the_limit(ratios, limit):
    pools = RatioPools()
    for count, ratio in enumerate(ratios, 1):
        why = pools.add("server", ratio, limit)
        assert bool(why) == (count >= 8 and math.fsum(ratios[:count]) / count > limit)


def test_nobody_answers_for_another_and_the_oldest_chunks_are_forgotten():
    pools = RatioPools()
    assert not any(pools.add(("server", number), 9.0, 1.5) for number in range(MAX_POOLS))
    assert not any(pools.add("honest", 1.0, 1.5) for _ in range(MAX_CHUNKS))
    assert not any(pools.add("honest", 1.4, 1.5) for _ in range(MAX_CHUNKS))
    found = [bool(pools.add("honest", 2.0, 1.5)) for _ in range(MAX_CHUNKS)]
    assert found.index(True) < MAX_CHUNKS


def test_what_is_no_number_is_in_no_mean():
    pools = RatioPools()
    assert not any(pools.add("server", math.nan, 1.5) for _ in range(20))
    assert not pools.add("server", 9.0, 1.5)
