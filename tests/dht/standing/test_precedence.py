"""Who comes first under load, and that no new name does."""

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import DEFAULT_SCORE_RULES, Contribution
from dht.standing.precedence import NEW_LEVEL, NUM_LEVELS, level_of

UNIT = DEFAULT_SCORE_RULES.unit_work
amounts = st.integers(0, 10**9)


def level(provided, consumed):
    return level_of(Contribution(provided, consumed), DEFAULT_SCORE_RULES)


@given(amounts, amounts, amounts)
def test_giving_never_lowers_and_taking_never_lifts(provided, consumed, more):
    here = level(provided, consumed)
    assert 0 <= here < NUM_LEVELS
    assert level(provided + more, consumed) >= here
    assert level(provided, consumed + more) <= here


def test_who_gives_as_much_as_it_takes_is_far_above_who_is_new():
    assert level(100 * UNIT, 100 * UNIT) == NUM_LEVELS - 1 > NEW_LEVEL
    assert level(0, 0) == NEW_LEVEL


def test_a_whitewasher_is_at_no_time_better_than_new():
    taken = [level(0, consumed) for consumed in range(0, 20 * UNIT, 64)]
    assert max(taken) == taken[0] == NEW_LEVEL
    assert taken[-1] == 0
