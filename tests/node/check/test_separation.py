"""How many chunks it takes to find a server follows from how often its chunks fail, and from their mean."""

import math

import pytest
import torch

from node.check.separation import MAX_CHUNKS, chunks_needed
from node.check.statistics import MIN_POOLED


def needed(share, ratio=1.0, limit=1.3, num_chunks=1000):
    fails = [index < share * num_chunks for index in range(num_chunks)]
    return chunks_needed([fails], [[ratio] * num_chunks], [limit], torch.Generator().manual_seed(0))


def test_who_always_fails_is_found_in_one_chunk_and_who_is_honest_in_none():
    assert needed(1.0) == 1
    assert needed(0.0) is None


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_who_fails_sometimes_is_found_when_the_formula_says(share):
    expected = math.log(0.01) / math.log(1 - share)
    assert needed(share) == pytest.approx(expected, rel=0.35)


def test_who_is_always_somewhat_worse_is_found_in_the_first_pool():
    assert needed(0.0, ratio=1.5) == MIN_POOLED
    assert needed(0.0, ratio=1.29) is None


def test_all_spans_count_alike():
    fails, ratios = [[True] * 10, [False] * 10], [[1.0] * 10] * 2
    assert chunks_needed(fails, ratios, [1.3, 1.3], torch.Generator().manual_seed(0)) is None
    assert MAX_CHUNKS >= 64
