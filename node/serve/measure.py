"""What a span costs on this machine, found by running it. Runs in the compute thread."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from node.model.ragged import Part
from node.model.span import Span

_PROBE_TOKENS = 64
_PROBE_STEPS = 8


@dataclass(frozen=True, slots=True)
class SpanCost:
    """Measured costs of one span."""

    blocks_per_s: float
    """Block-tokens per second in decoding one row: tokens times blocks of the span."""


def measure(span: Span, hidden_size: int) -> SpanCost:
    """Run a short prefill and a few decode steps on ``span``."""
    cache = span.new_cache(_PROBE_TOKENS + _PROBE_STEPS)
    prompt = torch.zeros((1, _PROBE_TOKENS, hidden_size), dtype=span.dtype, device=span.device)
    span.forward(prompt, cache)
    step = [Part(prompt[:, :1], cache)]
    span.forward_many(step)
    started_s = time.perf_counter()
    for _ in range(_PROBE_STEPS - 1):
        (output,) = span.forward_many(step)
    float(output.sum())  # waits for the device
    elapsed_s = time.perf_counter() - started_s
    return SpanCost((_PROBE_STEPS - 1) * (span.end - span.start) / elapsed_s)
