"""The error of an increment is what it is by hand, and fingerprints tell how far two chunks are apart."""

import hashlib
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.model.fingerprint import (
    FINGERPRINT_BYTES,
    RELATIVE_ERROR,
    fingerprint,
    fingerprint_distance,
    increment_errors,
)

HIDDEN = 96
ONES = torch.ones(HIDDEN)


def random(seed, positions=64, hidden=HIDDEN):
    return torch.randn(positions, hidden, generator=torch.Generator().manual_seed(seed))


def test_what_returns_its_input_is_wrong_by_one_at_every_position():
    inputs, reference = random(0), random(1)
    assert torch.allclose(increment_errors(inputs, inputs, reference, ONES), torch.ones(64))


def test_the_error_is_the_length_of_the_difference_over_that_of_the_increment():
    inputs, outputs, reference = torch.zeros(1, 2), torch.tensor([[3.0, 8.0]]), torch.tensor([[3.0, 4.0]])
    assert increment_errors(inputs, outputs, reference, torch.ones(2)).item() == pytest.approx(4 / 5)
    assert increment_errors(inputs, outputs, reference, torch.tensor([1.0, 4.0])).item() == pytest.approx(
        1 / math.hypot(3, 1)
    )


@given(seed=st.integers(0, 2**16), factor=st.floats(1e-3, 1e3))
def test_the_error_does_not_depend_on_the_unit_nor_on_what_is_added_to_all(seed, factor):
    inputs, outputs, reference, scales = random(seed, 3), random(seed + 1, 3), random(seed + 2, 3), random(seed + 3, 1)
    scales = scales[0].abs() + 0.1
    errors = increment_errors(inputs, outputs, reference, scales)
    scaled = increment_errors(factor * inputs, factor * outputs, factor * reference, factor * scales)
    assert torch.allclose(errors, scaled, rtol=1e-3)


def test_a_channel_that_is_large_for_all_does_not_hide_the_others():
    inputs, reference = torch.zeros(64, HIDDEN), random(1)
    reference[:, 0] *= 1000
    outputs = reference.clone()
    outputs[:, 1:] += 0.5 * random(2)[:, 1:]
    scales = reference.square().mean(0).sqrt()
    assert increment_errors(inputs, outputs, reference, ONES).median() < 0.02
    assert increment_errors(inputs, outputs, reference, scales).median() > 0.4


def test_what_is_no_number_is_infinitely_wrong_and_a_reference_of_none_says_nothing():
    inputs, reference = random(0, 4), random(1, 4)
    outputs = reference.clone()
    outputs[1, 3], outputs[2, 5] = math.nan, math.inf
    reference[3, 0] = math.nan
    errors = increment_errors(inputs, outputs, reference, ONES).tolist()
    assert errors[:3] == [0.0, math.inf, math.inf]
    assert math.isnan(errors[3])


def test_a_block_that_adds_nothing_must_be_met():
    inputs = random(0, 2)
    outputs = inputs.clone()
    outputs[1, 0] += 1e-3
    assert increment_errors(inputs, outputs, inputs, ONES).tolist() == [0.0, math.inf]


def print_of(increments, session=b"s" * 16, index=0):
    return fingerprint(torch.zeros_like(increments), increments, torch.ones(increments.shape[1]), session, index)


def test_distances_between_fingerprints_scatter_by_nine_percent_around_the_true_one():
    increments = random(0, 4)
    changed = increments + 0.1 * random(1, 4)
    true = float((changed - increments).norm() / increments.norm())
    ratios = [
        fingerprint_distance(print_of(increments, index=index), print_of(changed, index=index)) / true
        for index in range(200)
    ]
    mean = sum(ratios) / len(ratios)
    deviation = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / len(ratios))
    assert mean == pytest.approx(1, abs=0.03)
    # Numerator and denominator are both estimated, each within RELATIVE_ERROR.
    assert abs(RELATIVE_ERROR - 0.088) < 1e-3
    assert 0.8 * RELATIVE_ERROR < deviation < 1.7 * RELATIVE_ERROR


def test_equal_chunks_have_equal_fingerprints_and_another_chunk_or_session_has_another():
    increments = random(0)
    first = print_of(increments)
    assert len(first) == FINGERPRINT_BYTES == 128
    assert first == print_of(increments.clone())
    assert fingerprint_distance(first, first) == 0
    for other in (print_of(increments, index=1), print_of(increments, session=b"t" * 16)):
        assert fingerprint_distance(first, other) > 0.5


def test_a_fingerprint_is_made_of_the_hashes_bits_and_so_the_same_on_every_machine():
    session, index = b"golden session 1", 7
    increments = (torch.arange(2 * 12).reshape(2, 12) % 7 - 3).float()
    seed = hashlib.sha256(session + bytes([0, 0, 0, index])).digest()
    expected = []
    for projection in range(64):
        total = 0.0
        for position in range(2):
            stream = hashlib.shake_256(seed + bytes([0, 0, 0, position])).digest(64 * 2)[2 * projection :]
            for channel in range(12):
                is_set = stream[channel // 8] >> (channel % 8) & 1
                total += (1 if is_set else -1) * float(increments[position, channel])
        expected.append(total / 8)
    assert fingerprint(torch.zeros(2, 12), increments, torch.ones(12), session, index) == struct.pack("<64e", *expected)


def test_who_made_up_tokens_of_31_of_64_positions_is_seen_in_the_fingerprint():
    increments = random(0)
    cheated = increments.clone()
    cheated[:31] = 0
    assert fingerprint_distance(print_of(increments), print_of(cheated)) > 0.4


def test_numbers_that_float16_does_not_hold_are_far_and_break_nothing():
    increments = random(0)
    for broken in (increments * 1e9, increments * math.nan):
        assert fingerprint_distance(print_of(increments), print_of(broken)) > 1


@pytest.mark.parametrize("size", [0, 127, 129])
def test_what_has_another_size_is_no_fingerprint(size):
    with pytest.raises(ValueError, match="128 bytes"):
        fingerprint_distance(bytes(128), bytes(size))
