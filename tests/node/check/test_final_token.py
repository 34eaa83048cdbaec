"""A head is honest however it rounds, and a wrong logit, a token left out or a second-best one has an error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.check.final_token import greedy_errors, logit_errors
from node.model.sampling import top_logits

POSITIONS, VOCABULARY, TOP = 5, 97, 8


def logits_due(seed=0):
    return 3 * torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 2**16), k=st.integers(1, VOCABULARY))
def test_what_the_head_gives_has_no_error(seed, k):
    due = logits_due(seed)
    ids, logits = top_logits(due, k)
    assert logit_errors(due, ids, logits).max() == 0
    assert greedy_errors(due, ids[:, 0]).max() == 0


@given(seed=st.integers(0, 2**16), noise=st.floats(1e-5, 0.5))
def test_a_head_that_is_off_by_so_much_has_no_larger_error_nor_has_its_likeliest_token(seed, noise):
    due = logits_due(seed)
    sent = due + noise * (2 * torch.rand(due.shape, generator=torch.Generator().manual_seed(seed + 1)) - 1)
    ids, logits = top_logits(sent, TOP)
    most = noise / float(due.std(dim=1).min()) * 1.001 + 1e-6
    errors = logit_errors(due, ids, logits)
    assert errors.max() <= most
    assert (greedy_errors(due, ids[:, 0]) <= errors + 1e-6).all()


def test_one_logit_that_is_wrong_at_one_position_shows_there_and_nowhere_else():
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    logits[3, 5] += 1
    errors = logit_errors(due, ids, logits)
    assert float(errors[3]) == pytest.approx(1 / float(due[3].std()), rel=1e-4)
    assert errors.sum() == errors[3]


def test_a_token_that_is_kept_back_has_half_of_what_it_is_likelier_by():
    due = logits_due()
    ids, logits = top_logits(due, TOP + 1)
    expected = (logits[:, 0] - logits[:, TOP]) / 2 / due.std(dim=1)
    torch.testing.assert_close(logit_errors(due, ids[:, 1:], logits[:, 1:]), expected)


@pytest.mark.parametrize("id_sent", [VOCABULARY, 2**32 - 1])
def test_a_token_that_there_is_not_and_one_that_is_sent_twice_are_infinitely_wrong(id_sent):
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    ids[1, 2] = id_sent
    ids[2, 7], logits[2, 7] = ids[2, 6], logits[2, 6]
    assert logit_errors(due, ids, logits).isinf().tolist() == [False, True, True, False, False]
    assert greedy_errors(due, ids[:, 2]).isinf().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_no_number_is_infinitely_wrong_and_where_none_is_due_nothing_is_known(value):
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    logits[0, 0] = value
    due[1, 2] = value
    errors = logit_errors(due, ids, logits)
    assert errors[:2].isinf().tolist() == [True, False]
    assert errors[:2].isnan().tolist() == [False, True]
    assert greedy_errors(due, ids[:, 0])[1].isnan()


def test_the_second_likeliest_token_is_wrong_unless_both_are_as_likely():
    due = logits_due()
    second = due.topk(2, dim=1).indices[:, 1]
    assert greedy_errors(due, second).min() > 0
    tied = due.scatter(1, second.unsqueeze(1), due.amax(dim=1, keepdim=True) - 1e-3)
    assert greedy_errors(tied, second).max() < 1e-3
