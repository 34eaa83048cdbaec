"""From errors to figures: what many honest chunks come to in a calibration. Pure.

    errors of variant A, span 0:1    mean of the medians m_A ─┐
    errors of variant B, span 0:1    mean of the medians m_B ─┴─ mean of 0:1 = the largest
    all spans of a length, each chunk's statistics / its span's mean ── 99.9th percentile ── tail = largest of a variant

Every variant counts by itself, because an honest server is always the same one: among many, the worst one's errors
would not be seen in the 99.9th percentile of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from node.check.calibration import LEAST_MEAN, SIZES, HonestError, Tail
from node.check.statistics import HIGH, MIN_POOLED, quantile
from node.check.survey import Blocks

Samples: TypeAlias = Mapping[Blocks, Mapping[str, torch.Tensor]]
"""Errors ``[chunks, 64]`` by span and variant."""

PERCENTILE = 0.999
_POOLS = 1000
"""Pools of 8 chunks that are drawn of each variant and span."""
_LEAST = 1e-12
"""Of a percentile: servers that agree to the bit have none."""


def reduce_samples(held_in: str, codec: str, samples: Samples, generator: torch.Generator) -> HonestError:
    """Return the figures of one way to hold weights and one codec; the generator draws pools."""
    means = {blocks: _largest_mean(variants) for blocks, variants in samples.items()}
    lengths = sorted({end - start for start, end in samples})
    tails = []
    for length in lengths:
        of_length: dict[str, list[torch.Tensor]] = {}
        for (start, end), variants in samples.items():
            if end - start == length:
                for name, errors in variants.items():
                    of_length.setdefault(name, []).append(errors / means[start, end])
        tails.append((length, _widest([_tail(torch.cat(parts)) for parts in of_length.values()])))
    pooled = max(
        _pooled(medians(errors) / means[blocks], generator)
        for blocks, variants in samples.items()
        for errors in variants.values()
    )
    rounded = tuple((start, end, rounded_up(mean)) for (start, end), mean in sorted(means.items()))
    return HonestError(held_in, codec, rounded, tuple(tails), rounded_up(pooled))


def medians(errors: torch.Tensor) -> torch.Tensor:
    """Return the lower median of each row of ``errors`` ``[chunks, positions]``."""
    return errors.median(dim=1).values


def _largest_mean(variants: Mapping[str, torch.Tensor]) -> float:
    return max(LEAST_MEAN, *(float(medians(errors).double().mean()) for errors in variants.values()))


def _tail(ratios: torch.Tensor) -> Tail:
    """Return the percentiles of one variant's ``[chunks, 64]``."""
    whole = ratios.sort(dim=1).values
    medians_of_sizes = tuple(percentile(medians(_windows(ratios, size))) for size in SIZES)
    high = whole[:, math.ceil(HIGH * whole.shape[1] - 1e-9) - 1]
    return Tail(medians_of_sizes, percentile(high), percentile(whole[:, -1]), len(ratios))


def _windows(ratios: torch.Tensor, size: int) -> torch.Tensor:
    """Cut chunks ``[chunks, 64]`` into shorter ones, ``[more chunks, size]``; what is left over is dropped."""
    return ratios[:, : ratios.shape[1] // size * size].reshape(-1, size)


def percentile(values: torch.Tensor) -> float:
    """Return the 99.9th percentile of ``values``, rounded up to four digits."""
    return rounded_up(quantile(sorted(values.tolist()), PERCENTILE))


def _widest(tails: Sequence[Tail]) -> Tail:
    return Tail(
        tuple(max(tail.median[index] for tail in tails) for index in range(len(SIZES))),
        max(tail.high for tail in tails),
        max(tail.largest for tail in tails),
        min(tail.num_chunks for tail in tails),
    )


def _pooled(ratios: torch.Tensor, generator: torch.Generator) -> float:
    """Return the 99.9th percentile of the mean of 8 of ``ratios``, drawn with replacement."""
    drawn = torch.randint(len(ratios), (_POOLS, MIN_POOLED), generator=generator)
    return quantile(sorted(ratios[drawn].double().mean(dim=1).tolist()), PERCENTILE)


def rounded_up(value: float) -> float:
    """Return ``value`` in four digits, not below it: files stay small, and nothing becomes stricter by rounding."""
    value = max(value, _LEAST)
    digits = 3 - math.floor(math.log10(value))
    return float(f"{math.ceil(value * 10.0**digits - 1e-9) * 10.0**-digits:.4g}")
