"""Duplicates are never more than a twentieth of what was consumed, from the first token on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.client.shadow_budget import MAX_PER_MILLE, ShadowBudget


@given(
    st.integers(0, MAX_PER_MILLE),
    st.lists(st.tuples(st.sampled_from(["consume", "spend", "give back"]), st.integers(1, 5000)), max_size=30),
)
def test_whatever_comes_no_more_is_duplicated_than_the_share_of_what_was_consumed(per_mille, acts):
    budget, under_way = ShadowBudget(per_mille), []
    for act, amount in acts:
        if act == "consume":
            budget.consume(amount)
        elif act == "spend" and budget.can_spend(amount):
            budget.spend(amount)
            under_way.append(amount)
        elif act == "give back" and under_way:
            budget.give_back(under_way.pop())
        assert 0 <= 1000 * budget.duplicated <= per_mille * budget.consumed


def test_all_of_the_share_may_be_used_and_nothing_is_rounded_up():
    budget = ShadowBudget(MAX_PER_MILLE)
    budget.consume(119)
    assert (budget.left, budget.can_spend(5), budget.can_spend(6)) == (5, True, False)
    budget.spend(5)
    budget.consume(1)
    assert budget.left == 1


def test_who_wants_none_has_none():
    budget = ShadowBudget(0)
    budget.consume(10**9)
    assert not budget.is_open
    assert not budget.can_spend(1)


@pytest.mark.parametrize("per_mille", [-1, MAX_PER_MILLE + 1])
def test_there_is_no_larger_share(per_mille):
    with pytest.raises(AssertionError):
        ShadowBudget(per_mille)
