"""Choose tokens from logits: the largest logits, the likeliest token, or a sample. Pure.

Temperature, top-k and top-p act in transformers' order and keep the tokens that its own filters keep. The random number
of a token is a hash of seed, position and row, so a step that is computed again gives the same token, whatever else was
in its batch. Runs in the compute thread of a server that samples for its clients; knows no session and no frame.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

import torch

from node.errors import UserError

MAX_TEMPERATURE = 1000.0
"""Above this every text is noise."""
MAX_SEED = 2**64 - 1
_COLDEST = 1e-4
"""Below this temperature the likeliest token is certain, and dividing by it would overflow."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen; checked when it is made."""

    temperature: float
    """Logits are divided by it; 0 takes the likeliest token, and nothing else counts then."""
    top_k: int
    """Only so many of the likeliest tokens are considered; 0: all."""
    top_p: float
    """Only the likeliest tokens whose probabilities first reach this sum are considered; 1: all."""
    seed: int
    """Same seed, position and row: same random number."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise UserError(f"A temperature of {self.temperature} cannot be used; give 0 to {MAX_TEMPERATURE:g}.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} cannot be used; give 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} cannot be used; give more than 0 and at most 1.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"The seed {self.seed} cannot be used; give 0 to {MAX_SEED}.")

    @property
    def takes_likeliest(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < _COLDEST


def top_logits(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and values of the ``k`` largest logits, the largest first.

    Args:
        logits: ``[..., vocabulary]``.
        k: how many; all, when the vocabulary has fewer.

    Returns:
        ids ``[..., k]`` int64 and logits ``[..., k]`` of the dtype given.
    """
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return ids, values


def choose(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """Return one token id per row.

    Args:
        logits: ``[rows, vocabulary]`` in float32.
        sampling: how to choose.
        position: position that the chosen tokens will have, equal for all rows.

    Returns:
        ``[rows]`` int64. Logits that are not numbers give some id of the vocabulary.
    """
    if sampling.takes_likeliest:
        return logits.argmax(dim=-1)
    ids, probabilities = candidates(logits, sampling)
    draws = torch.tensor(
        [[draw(sampling.seed, position, row)] for row in range(logits.shape[0])],
        dtype=torch.float64,
        device=logits.device,
    )
    sums = probabilities.double().cumsum(dim=-1)
    # The sum is 1 but for rounding; the last candidate that has any probability takes what is missing.
    last = (probabilities > 0).sum(dim=-1, keepdim=True).sub(1).clamp_min(0)
    chosen = torch.searchsorted(sums, draws, right=True).minimum(last)
    return ids.gather(-1, chosen).squeeze(-1)


def candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens that may be drawn and their probabilities, the likeliest first.

    Args:
        logits: ``[rows, vocabulary]``.
        sampling: how to choose, with a temperature above 0.

    Returns:
        ids ``[rows, n]`` int64 and probabilities ``[rows, n]``, 0 for what top-p leaves out.
    """
    vocabulary = logits.shape[-1]
    ids, kept = top_logits(logits / sampling.temperature, sampling.top_k or vocabulary)
    probabilities = kept.softmax(dim=-1)
    if sampling.top_p < 1:
        # A token stays while those before it have not reached the sum: the likeliest one always does.
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = kept.masked_fill(before >= sampling.top_p, -torch.inf).softmax(dim=-1)
    return ids, probabilities


def draw(seed: int, position: int, row: int) -> float:
    """Return a number in [0, 1) that seed, position and row decide alone, with 53 random bits."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, position, row), digest_size=8, person=b"efed-sample").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
