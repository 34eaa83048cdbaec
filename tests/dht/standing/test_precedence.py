"""Who comes first under load, and that neither a new name nor a ring of friends does."""

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import DEFAULT_SCORE_RULES
from dht.standing.precedence import NEW_LEVEL, NUM_LEVELS, level_of
from dht.standing.ranks import Rank
from dht.standing.workbook import Contribution

UNIT = DEFAULT_SCORE_RULES.unit_work
amounts = st.integers(0, 10**9)


def level(provided, consumed, rank=Rank.ESTABLISHED, *, has_flow=True):
    return level_of(Contribution(provided, consumed), rank, DEFAULT_SCORE_RULES, has_flow=has_flow)


@given(amounts, amounts, amounts, st.sampled_from(Rank), st.booleans())
def test_giving_never_lowers_and_taking_never_lifts(provided, consumed, more, rank, has_flow):
    here = level(provided, consumed, rank, has_flow=has_flow)
    assert 0 <= here < NUM_LEVELS
    assert level(provided + more, consumed, rank, has_flow=has_flow) >= here
    assert level(provided, consumed + more, rank, has_flow=has_flow) <= here


def test_who_gives_as_much_as_it_takes_is_far_above_who_is_new():
    assert level(100 * UNIT, 100 * UNIT) == NUM_LEVELS - 1 > NEW_LEVEL
    assert level(0, 0, Rank.NEWCOMER) == NEW_LEVEL


def test_a_whitewasher_is_at_no_time_better_than_new():
    taken = [level(0, consumed, Rank.NEWCOMER) for consumed in range(0, 20 * UNIT, 64)]
    assert max(taken) == taken[0] == NEW_LEVEL
    assert taken[-1] == 0


def test_what_a_ring_signs_for_itself_gives_no_precedence_once_anybody_is_trusted():
    assert level(10**9, 0, Rank.NEWCOMER) == NEW_LEVEL
    assert level(10**9, 0, Rank.CONVICTED) == level(10**9, 0, Rank.EQUIVOCATOR) == NEW_LEVEL
    assert level(10**9, 0, Rank.NEWCOMER, has_flow=False) == NUM_LEVELS - 1, "until then receipts are all there is"
