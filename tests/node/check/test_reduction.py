"""Percentiles are of each variant by itself, thresholds are never rounded down, and shorter chunks have wider ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.check.calibration import LEAST_MEAN, SIZES
from node.check.reduction import percentile, reduce_samples, rounded_up

BLOCKS = (0, 1)


def errors(mean, num_chunks=50, seed=0):
    noise = torch.randn(num_chunks, 64, generator=torch.Generator().manual_seed(seed))
    return mean * (0.2 * noise).exp()


def reduced(samples):
    return reduce_samples("bfloat16", "float32", samples, torch.Generator().manual_seed(0))


def test_the_mean_is_that_of_the_variant_that_has_most():
    figures = reduced({BLOCKS: {"one": errors(0.01), "other": errors(0.02)}})
    assert figures.means[0][2] == pytest.approx(0.02, rel=0.02)


def test_one_bad_variant_among_many_is_seen_in_the_tail():
    steady = {f"variant {index}": errors(0.01, num_chunks=400, seed=index) for index in range(3)}
    ragged = errors(0.01, num_chunks=200, seed=9)
    ragged[:, 5] *= 3
    without, with_it = reduced({BLOCKS: steady}), reduced({BLOCKS: {**steady, "ragged": ragged}})
    assert with_it.tails[0][1].largest > 1.5 * without.tails[0][1].largest
    assert with_it.tails[0][1].num_chunks == 200


def test_shorter_chunks_have_wider_tails():
    (_, tail), *_ = reduced({BLOCKS: {"one": errors(0.01, num_chunks=500)}}).tails
    assert len(tail.median) == len(SIZES)
    assert list(tail.median) == sorted(tail.median, reverse=True)
    assert tail.largest >= tail.high >= tail.median[-1] > 1


def test_chunks_of_several_spans_of_a_length_are_measured_by_their_own_means():
    (_, tail), *_ = reduced({(0, 1): {"one": errors(0.001)}, (1, 2): {"one": errors(0.1, seed=1)}}).tails
    assert tail.median[-1] < 1.2


def test_servers_that_agree_to_the_bit_have_figures_too():
    figures = reduced({BLOCKS: {"one": torch.zeros(4, 64)}})
    assert figures.means[0][2] == pytest.approx(LEAST_MEAN)
    assert 0 < figures.tails[0][1].median[-1] < 1e-6
    assert figures.pooled > 0


def test_the_pooled_percentile_is_narrower_than_that_of_chunks():
    chunks = 0.01 * (0.3 * torch.randn(400, 1, generator=torch.Generator().manual_seed(3))).exp().expand(400, 64)
    figures = reduced({BLOCKS: {"one": chunks}})
    assert 1 < figures.pooled < figures.tails[0][1].median[-1]


@given(value=st.floats(1e-11, 1e6))
def test_rounding_keeps_four_digits_and_never_makes_stricter(value):
    rounded = rounded_up(value)
    assert value * (1 - 1e-12) <= rounded <= value * 1.0011
    assert float(f"{rounded:.4g}") == rounded


def test_a_percentile_of_few_is_their_largest():
    assert percentile(torch.tensor([1.0, 5.0, 2.0])) == 5.0
