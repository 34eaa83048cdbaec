"""The three statistics of a chunk see who cheats throughout, in part, and at one position."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.check.statistics import MIN_POOLED, ChunkStatistics, pooled_ratio, quantile, summarise

ERRORS = st.lists(st.floats(0, 10), min_size=1, max_size=64)


@given(errors=ERRORS)
def test_the_statistics_ascend_and_are_errors_of_the_chunk(errors):
    summary = summarise(errors)
    assert summary.median <= summary.high <= summary.largest == max(errors)
    assert {summary.median, summary.high} <= {*errors}
    assert summary.num_positions == len(errors)


@given(errors=ERRORS, seed=st.randoms(use_true_random=False))
def test_the_order_of_positions_does_not_matter(errors, seed):
    shuffled = errors[:]
    seed.shuffle(shuffled)
    assert summarise(shuffled) == summarise(errors)


def test_31_of_64_corrupted_positions_leave_the_median_alone_and_not_the_others():
    summary = summarise([0.01] * 33 + [0.5] * 31)
    assert summary == ChunkStatistics(0.01, 0.5, 0.5, 64)


def test_one_corrupted_position_of_64_shows_in_the_largest_error_alone():
    assert summarise([0.5] + [0.01] * 63) == ChunkStatistics(0.01, 0.01, 0.5, 64)


def test_what_is_no_number_counts_as_infinite():
    assert summarise([math.nan, 0.1, 0.2]).largest == math.inf
    assert summarise([math.inf] * 3).median == math.inf


def test_a_chunk_without_positions_is_refused():
    with pytest.raises(ValueError, match="without positions"):
        summarise([])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.999, 4), (1.0, 4)]
)
def test_a_quantile_is_one_of_the_numbers_and_rounds_up(share, expected):
    assert quantile([1, 2, 3, 4], share) == expected


@given(first=ERRORS, second=ERRORS)
def test_the_worse_of_two_rows_is_no_better_than_either(first, second):
    one, other = summarise(first), summarise(second)
    worse = one.worst_with(other)
    assert worse == other.worst_with(one)
    assert worse.median >= max(one.median, other.median)
    assert worse.largest == max(one.largest, other.largest)
    assert worse.num_positions == min(len(first), len(second))


def test_a_pool_needs_eight_chunks():
    assert pooled_ratio([1.0] * (MIN_POOLED - 1)) is None
    assert pooled_ratio([1.0] * 4 + [2.0] * 4) == 1.5
