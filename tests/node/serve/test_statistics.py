"""What a donor is told of the last minute is what happened in it."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.engine import BatchReport
from node.serve.statistics import Load, Statistics


def test_a_server_that_did_nothing_reports_zeros():
    assert Statistics(-100.0).load(100.0) == Load(0.0, 0.0, 0.0, 0.0, 0.0)


def test_rates_are_those_of_the_window():
    watched = Statistics(-100.0, window_s=10.0)
    watched.observe(1.0, BatchReport(1, 30, 0.5, (0.001,)))
    watched.observe(9.0, BatchReport(3, 70, 1.5, (0.002, 0.003, 0.004)))
    load = watched.load(10.0)
    assert load.tokens_per_s == pytest.approx((30 + 70) / 10)
    assert load.busy_share == pytest.approx((0.5 + 1.5) / 10)
    # One step was alone, three shared: (1 + 3 + 3 + 3) / 4.
    assert load.batch_mean == pytest.approx(10 / 4)


def test_what_left_the_window_is_forgotten():
    watched = Statistics(-100.0, window_s=10.0)
    watched.observe(0.0, BatchReport(9, 900, 5.0, (1.0,) * 9))
    watched.observe(15.0, BatchReport(1, 20, 1.0, (0.002,)))
    assert watched.load(16.0) == Load(2.0, 1.0, 0.1, 2.0, 2.0)
    assert watched.load(26.0) == Load(0.0, 0.0, 0.0, 0.0, 0.0)


def test_a_forward_that_began_before_the_window_does_not_make_more_than_all_of_it():
    watched = Statistics(-100.0, window_s=10.0)
    watched.observe(1.0, BatchReport(1, 1, 30.0, ()))
    assert watched.load(2.0).busy_share == 1.0


def test_chunks_that_go_on_wait_for_nothing():
    watched = Statistics(-100.0)
    watched.observe(1.0, BatchReport(1, 64, 0.1, (0.5,)))
    for now_s in range(2, 30):
        watched.observe(float(now_s), BatchReport(1, 64, 0.1, ()))
    load = watched.load(30.0)
    assert (load.wait_p50_ms, load.wait_p95_ms) == (500.0, 500.0)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300).map(lambda waits: [wait / 1000 for wait in waits]))
def test_waits_are_quantiles_of_all_steps_that_began(waits_s):
    watched = Statistics(-100.0)
    for first in range(0, len(waits_s), 7):
        watched.observe(1.0, BatchReport(7, 7, 0.0, tuple(waits_s[first : first + 7])))
    load = watched.load(2.0)
    # At most one rank above the middle, and among the slowest twentieth (or the slowest of all).
    assert 1000 * statistics.median_high(waits_s) == pytest.approx(load.wait_p50_ms)
    num_slower = sum(1000 * wait_s > load.wait_p95_ms + 1e-6 for wait_s in waits_s)
    num_as_slow = sum(1000 * wait_s >= load.wait_p95_ms - 1e-6 for wait_s in waits_s)
    assert num_slower <= 0.05 * len(waits_s)
    assert num_as_slow >= 0.05 * len(waits_s)
