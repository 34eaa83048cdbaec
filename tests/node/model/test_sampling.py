"""What is drawn follows transformers' own filters, and a seed gives the same tokens again."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from node.errors import UserError
from node.model.sampling import MAX_SEED, Sampling, candidates, choose, draw, top_logits

VOCABULARY = 50


def logits_of(seed, rows=3):
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 4


def by_transformers(logits, sampling):
    """Return the probabilities that transformers' own filters leave, ``[rows, vocabulary]``."""
    filters = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    for warp in filters:
        logits = warp(None, logits)
    return logits.softmax(dim=-1)


@given(st.integers(0, 10**6), st.floats(0.05, 20), st.integers(0, VOCABULARY + 5), st.floats(0.01, 1))
def test_the_probabilities_are_those_that_transformers_filters_leave(seed, temperature, top_k, top_p):
    logits, sampling = logits_of(seed), Sampling(temperature, top_k, top_p, 0)
    ids, probabilities = candidates(logits, sampling)
    whole = torch.zeros_like(logits).scatter(-1, ids, probabilities)
    torch.testing.assert_close(whole, by_transformers(logits, sampling), atol=1e-5, rtol=1e-4)


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    logits, sampling, num_draws = logits_of(1, rows=1), Sampling(2.0, 20, 0.95, 7), 4000
    counts = torch.zeros(VOCABULARY)
    for position in range(num_draws):
        counts[choose(logits, sampling, position)] += 1
    expected = by_transformers(logits, sampling)[0] * num_draws
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum().item()
    degrees = int(kept.sum()) - 1
    assert degrees > 5
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


def test_a_seed_gives_the_same_tokens_again_whatever_else_is_in_the_batch():
    logits = logits_of(2, rows=8)
    sampling = Sampling(5.0, 0, 1.0, 11)
    tokens = choose(logits, sampling, 4)
    assert torch.equal(choose(logits, sampling, 4), tokens)
    assert torch.equal(choose(logits[:3], sampling, 4), tokens[:3])
    assert not torch.equal(choose(logits, sampling, 5), tokens)
    assert not torch.equal(choose(logits, Sampling(5.0, 0, 1.0, 12), 4), tokens)


def test_rows_of_one_step_draw_numbers_of_their_own():
    logits = logits_of(3, rows=1).expand(40, -1)
    assert len(set(choose(logits, Sampling(5.0, 0, 1.0, 1), 0).tolist())) > 5


def test_no_temperature_takes_the_likeliest_token():
    logits = logits_of(4)
    for sampling in (
        Sampling(0, 0, 1.0, 3),
        Sampling(0, 7, 0.5, 3),
        Sampling(1.0, 1, 1.0, 3),
        Sampling(1.0, 0, 1e-9, 3),
    ):
        assert torch.equal(choose(logits, sampling, 9), logits.argmax(dim=-1))


@given(st.integers(0, MAX_SEED), st.integers(0, 2**24), st.integers(0, 1023))
def test_a_draw_is_at_least_0_and_below_1(seed, position, row):
    assert 0 <= draw(seed, position, row) < 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0, 1e-30, 1.0, 1000.0])
def test_logits_that_are_no_numbers_still_give_an_id_of_the_vocabulary(value, temperature):
    logits = logits_of(5)
    logits[0, 3] = value
    logits[1] = value
    for top_p in (0.5, 1.0):
        tokens = choose(logits, Sampling(temperature, 0, top_p, 0), 0)
        assert bool(((tokens >= 0) & (tokens < VOCABULARY)).all())
        assert tokens[2] == choose(logits_of(5), Sampling(temperature, 0, top_p, 0), 0)[2]


def test_the_largest_logits_come_with_their_ids_the_largest_first():
    logits = logits_of(6)
    ids, values = top_logits(logits.reshape(3, 1, VOCABULARY), 5)
    order = logits.argsort(dim=-1, descending=True)[:, :5]
    assert torch.equal(ids[:, 0], order)
    assert torch.equal(values[:, 0], logits.gather(-1, order))
    ids, _ = top_logits(logits, VOCABULARY + 100)
    assert ids.shape == logits.shape


@pytest.mark.parametrize(
    "values",
    [
        (-0.1, 0, 1.0, 0), (math.nan, 0, 1.0, 0), (math.inf, 0, 1.0, 0), (1001.0, 0, 1.0, 0), (1.0, -1, 1.0, 0),
        (1.0, 0, 0.0, 0), (1.0, 0, 1.1, 0), (1.0, 0, math.nan, 0), (1.0, 0, 1.0, -1), (1.0, 0, 1.0, 2**64),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used_are_refused_in_a_sentence(values):
    with pytest.raises(UserError, match="cannot be used; give"):
        Sampling(*values)
