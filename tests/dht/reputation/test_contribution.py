"""Priority under load: monotone, the same everywhere, and no gift for new names."""

import math

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import ONE, priority

UNIT = 4096
work = st.integers(0, 10**9)


@given(work, work)
def test_it_is_the_curve(provided, consumed):
    ratio = consumed / UNIT / (provided / UNIT + 3)
    expected = 1 / (1 + math.exp(min(700, 3 * ratio - 6)))
    assert abs(priority(provided, consumed, True) / ONE - expected) < 1e-9


@given(work, work, work)
def test_it_never_rises_with_what_was_taken_nor_falls_with_what_was_given(provided, consumed, more):
    here = priority(provided, consumed, True)
    assert priority(provided, consumed + more, True) <= here <= priority(provided + more, consumed, True)
    assert 0 <= here <= ONE


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_free_rider_who_takes_a_new_name_is_no_better_than_one_who_took_twice_what_it_may(provided, consumed):
    assert priority(0, 0, False) == ONE // 2 == priority(0, 6 * UNIT, True)
    if consumed <= provided:
        assert priority(provided, consumed, True) > priority(0, 0, False)


def test_who_consumed_much_and_gave_nothing_comes_last():
    assert priority(0, 10**12, True) == 0
