import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serve.bandwidth import Bandwidth


def test_without_a_bound_nobody_waits():
    assert Bandwidth().delay_s(2**40, 0.0) == 0.0


def test_a_short_step_passes_and_a_long_one_waits_until_it_is_paid():
    bandwidth = Bandwidth(1000.0)
    assert bandwidth.delay_s(250, 0.0) == 0.0
    assert bandwidth.delay_s(500, 0.0) == pytest.approx(0.5)
    assert bandwidth.delay_s(100, 0.5) == pytest.approx(0.1)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 2)), min_size=1, max_size=50))
def test_nobody_moves_more_than_the_bound_and_a_burst(moves):
    bandwidth, now_s, moved = Bandwidth(1000.0), 0.0, 0
    for num_bytes, pause_s in moves:
        now_s += pause_s
        moved += num_bytes
        at_s = now_s + bandwidth.delay_s(num_bytes, now_s)
        assert moved <= 1000.0 * at_s + 250.0 + 1e-6
