"""Promises of cache memory add up to no more than there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.serve.budget import CacheBudget

TOTAL = 100


def test_what_is_promised_is_no_longer_free_until_it_is_released():
    budget = CacheBudget(TOTAL)
    budget.promise(b"a", 60)
    assert budget.free_bytes == 40
    assert not budget.can_promise(b"b", 41)
    assert budget.can_promise(b"b", 40)
    budget.release(b"a")
    assert budget.free_bytes == TOTAL


def test_a_session_may_exchange_its_promise_for_a_larger_one():
    budget = CacheBudget(TOTAL)
    budget.promise(b"a", 60)
    assert budget.can_promise(b"a", TOTAL)
    budget.promise(b"a", TOTAL)
    assert budget.free_bytes == 0
    budget.promise(b"a", 10)
    assert budget.free_bytes == 90


def test_releasing_what_was_never_promised_changes_nothing():
    budget = CacheBudget(TOTAL)
    budget.release(b"a")
    assert budget.free_bytes == TOTAL


def test_a_promise_that_was_not_asked_for_is_our_own_bug():
    with pytest.raises(AssertionError):
        CacheBudget(TOTAL).promise(b"a", TOTAL + 1)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.none() | st.integers(0, TOTAL + 20))))
def test_the_budget_agrees_with_a_plain_dictionary(requests):
    budget, promised = CacheBudget(TOTAL), {}
    for session, num_bytes in requests:
        if num_bytes is None:
            budget.release(session)
            promised.pop(session, None)
            continue
        fits = sum(promised.values()) - promised.get(session, 0) + num_bytes <= TOTAL
        assert budget.can_promise(session, num_bytes) == fits
        if fits:
            budget.promise(session, num_bytes)
            promised[session] = num_bytes
        assert budget.free_bytes == TOTAL - sum(promised.values()) >= 0
