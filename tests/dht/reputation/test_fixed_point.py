"""Halving with age: exactly the number that its definition names, for every age and half-life."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.reputation.fixed_point import ONE, decay, decay_table


def is_what_is_defined(left, age, half_life):
    """The greatest d with d^h * 2^n <= 2^(40 h), found without roots."""
    most = 1 << 40 * half_life
    return (left**half_life << age) <= most < ((left + 1) ** half_life << age)


@pytest.mark.parametrize(("half_life", "length"), [(28, 56), (56, 360), (120, 360)])
def test_every_entry_of_the_swarms_tables_is_what_is_defined(half_life, length):
    table = decay_table(length, half_life)
    assert all(is_what_is_defined(left, age, half_life) for age, left in enumerate(table))


@given(st.integers(0, 2000), st.integers(1, 400))
def test_any_other_one_is_too(age, half_life):
    assert is_what_is_defined(decay(age, half_life), age, half_life)


@given(st.integers(0, 60), st.integers(1, 2**16))
def test_a_half_life_halves_exactly(times, half_life):
    assert decay(times * half_life, half_life) == ONE >> times


@given(st.integers(0, 50 * ONE), st.integers(0, ONE))
def test_more_leaves_no_more(weight, more):
    assert ONE >= decay(weight, ONE) >= decay(weight + more, ONE) >= 0


def test_a_power_of_a_fixed_point_number_is_a_decay_with_half_life_one():
    assert decay(ONE // 2, ONE) == 777472127993  # 2^40 / sqrt(2) = 777472127993.77...
    assert decay(4 * ONE, ONE) == ONE // 16
    assert decay(41 * ONE, ONE) == 0
