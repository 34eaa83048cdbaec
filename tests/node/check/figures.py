"""Calibrations of made-up figures, for tests that are not about the figures."""

import dataclasses

import torch

from node.check.calibration import Calibration, Circumstances, HonestError, Tail

MADE_FROM = Circumstances((("torch", "0"),), ("cpu",), ("prefill",), 0, "made up", 64)


def tail(median=1.4, high=2.0, largest=3.0, num_chunks=1000):
    return Tail((median + 0.6, median + 0.4, median + 0.2, median), high, largest, num_chunks)


def honest(held_in="bfloat16", codec="float32", mean=0.01, num_blocks=4):
    means = tuple((start, start + length, mean) for length in (1, 2, 4) for start in range(0, num_blocks, length))
    tails = tuple((length, tail()) for length in (1, 2, 4) if length <= num_blocks)
    means = tuple(entry for entry in means if entry[1] <= num_blocks)
    return HonestError(held_in, codec, means, tails, 1.05)


def answers(held_in="bfloat16", codec="float32", mean=0.01, num_blocks=4):
    """As ``honest``, of the spans up to the last block."""
    means = tuple((num_blocks - length, num_blocks, mean) for length in (1, 2, 4) if length <= num_blocks)
    return dataclasses.replace(honest(held_in, codec, mean, num_blocks), means=means)


def calibration(hidden_size=32, num_blocks=4, kinds=(("bfloat16", "float32"),), moments=None, mean=0.01):
    if moments is None:
        moments = torch.ones(num_blocks, hidden_size)
    return Calibration(
        bytes(range(32)),
        num_blocks,
        hidden_size,
        moments.float().contiguous().numpy().tobytes(),
        tuple(honest(held_in, codec, mean, num_blocks) for held_in, codec in kinds),
        tuple(answers(held_in, codec, mean, num_blocks) for held_in, codec in kinds),
        MADE_FROM,
    )
