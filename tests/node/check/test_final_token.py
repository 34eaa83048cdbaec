"""A head is honest however it rounds, and a wrong logit, a token left out or a second-best one is found."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.check.calibration import Limit
from node.check.check import Verdict
from node.check.final_token import check_greedy, check_logits, greedy_errors, head_limit, logit_errors
from node.errors import BadOpening, CannotCheck
from node.model.sampling import top_logits
from tests.node.check.figures import calibration

POSITIONS, VOCABULARY, TOP = 5, 97, 8
LIMIT = Limit(1e-3, 1e-2)


class Head:
    """A head without a model: the hidden states are the logits."""

    vocab_size = VOCABULARY

    def logits(self, hidden):
        return hidden


def logits_due(seed=0):
    return 3 * torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 2**16), k=st.integers(1, VOCABULARY))
def test_what_the_head_gives_has_no_error_and_passes(seed, k):
    due = logits_due(seed)
    ids, logits = top_logits(due, k)
    assert logit_errors(due, ids, logits).max() == 0
    assert greedy_errors(due, ids[:, 0]).max() == 0
    assert check_logits(Head(), due, ids, logits, LIMIT)[0] is Verdict.PASS
    assert check_greedy(Head(), due, ids[:, 0], LIMIT)[0] is Verdict.PASS


@given(seed=st.integers(0, 2**16), noise=st.floats(1e-5, 0.5))
def test_a_head_that_is_off_by_so_much_has_no_larger_error(seed, noise):
    due = logits_due(seed)
    sent = due + noise * (2 * torch.rand(due.shape, generator=torch.Generator().manual_seed(seed + 1)) - 1)
    ids, logits = top_logits(sent, TOP)
    most = noise / float(due.std(dim=1).min()) * 1.001 + 1e-6
    assert logit_errors(due, ids, logits).max() <= most
    assert greedy_errors(due, ids[:, 0]).max() <= most


def test_one_logit_that_is_wrong_at_one_position_fails():
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    logits[3, 5] += 1
    verdict, largest = check_logits(Head(), due, ids, logits, LIMIT)
    assert (verdict, largest) == (Verdict.FAIL, pytest.approx(1 / float(due[3].std()), rel=1e-4))


def test_a_token_that_is_kept_back_fails():
    due = logits_due()
    ids, logits = top_logits(due, TOP + 1)
    assert check_logits(Head(), due, ids[:, 1:], logits[:, 1:], LIMIT)[0] is Verdict.FAIL


def test_a_token_that_is_sent_twice_in_place_of_another_fails():
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    ids[2, 7], logits[2, 7] = ids[2, 6], logits[2, 6]
    assert check_logits(Head(), due, ids, logits, LIMIT) == (Verdict.FAIL, math.inf)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_no_number_fails_and_a_head_that_gives_none_says_nothing(value):
    due = logits_due()
    ids, logits = top_logits(due, TOP)
    broken = logits.clone()
    broken[0, 0] = value
    assert check_logits(Head(), due, ids, broken, LIMIT)[0] is Verdict.FAIL
    due[1, 2] = value
    assert check_logits(Head(), due, ids, logits, LIMIT)[0] is Verdict.INCONCLUSIVE


def test_the_second_likeliest_token_fails_unless_both_are_as_likely():
    due = logits_due()
    second = due.topk(2, dim=1).indices[:, 1]
    assert check_greedy(Head(), due, second, LIMIT)[0] is Verdict.FAIL
    tied = due.scatter(1, second.unsqueeze(1), due.amax(dim=1, keepdim=True) - 1e-3)
    assert check_greedy(Head(), tied, second, LIMIT)[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("ids", "logits"),
    [
        (torch.full((POSITIONS, 2), VOCABULARY), torch.zeros(POSITIONS, 2)),
        (torch.full((POSITIONS, 2), -1), torch.zeros(POSITIONS, 2)),
        (torch.zeros(POSITIONS, 2).long(), torch.zeros(POSITIONS, 3)),
        (torch.zeros(POSITIONS + 1, 2).long(), torch.zeros(POSITIONS + 1, 2)),
        (torch.zeros(POSITIONS, 0).long(), torch.zeros(POSITIONS, 0)),
    ],
)
def test_an_opening_that_does_not_fit_is_refused(ids, logits):
    with pytest.raises(BadOpening):
        check_logits(Head(), logits_due(), ids, logits, LIMIT)


def test_tokens_that_do_not_fit_are_refused():
    for ids in (torch.zeros(POSITIONS, 1).long(), torch.zeros(POSITIONS + 1).long(), torch.full((POSITIONS,), 97)):
        with pytest.raises(BadOpening):
            check_greedy(Head(), logits_due(), ids, LIMIT)


def test_thresholds_are_the_calibrations_and_what_was_not_measured_is_not_checked():
    limit = head_limit(calibration(), "bfloat16", "float32")
    assert (limit.passes, limit.fails) == pytest.approx((0.0125, 0.02))
    with pytest.raises(CannotCheck):
        head_limit(dataclasses.replace(calibration(), head=()), "bfloat16", "float32")
