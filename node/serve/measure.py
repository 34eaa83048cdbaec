"""What a span costs on this machine, found by running it. Runs in the compute thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from node.model.ragged import Part
from node.model.span import Span

_PROMPT_TOKENS = (16, 64, 256)
"""Prompts, one after the other, shortest first; the last is as long as the pieces in which clients send theirs."""
_ENOUGH_S = 0.4
"""No longer prompt is tried, nor one again, when one took as much: four times the tokens take four times as long, s."""
_PROMPT_RUNS = 3
"""Runs of the longest prompt; the median counts, because a machine that is shared stalls now and then."""
_HISTORY = 64
"""Positions behind which steps are decoded, at most."""
_STEPS = 16
"""Decoding steps that count, at most; the median does."""


@dataclass(frozen=True, slots=True)
class SpanCost:
    """Measured costs of one span."""

    blocks_per_s: float
    """Block-tokens per second in decoding one row: tokens times blocks of the span."""
    prefill_blocks_per_s: float
    """Block-tokens per second of a long prompt of one row."""


def measure(span: Span, hidden_size: int) -> SpanCost:
    """Run prompts of rising length and some decode steps on ``span``; where no call is slow this takes two seconds."""
    count = span.end - span.start
    num_tokens, prompt_s = _measure_prompt(span, hidden_size)
    step_s = _measure_step(span, hidden_size, min(num_tokens, _HISTORY))
    return SpanCost(blocks_per_s=count / step_s, prefill_blocks_per_s=num_tokens * count / prompt_s)


def _measure_prompt(span: Span, hidden_size: int) -> tuple[int, float]:
    """Return the tokens of the longest prompt that was tried, and how long it takes, s."""
    for num_tokens in _PROMPT_TOKENS:
        elapsed_s = _run_prompt(span, hidden_size, num_tokens)
        if elapsed_s > _ENOUGH_S:
            return num_tokens, elapsed_s
    return num_tokens, statistics.median(_run_prompt(span, hidden_size, num_tokens) for _ in range(_PROMPT_RUNS))


def _run_prompt(span: Span, hidden_size: int, num_tokens: int) -> float:
    cache, prompt = span.new_cache(num_tokens), _zeros(span, hidden_size, num_tokens)
    return _run_s(lambda: span.forward(prompt, cache))


def _measure_step(span: Span, hidden_size: int, history: int) -> float:
    """Return how long a decode step of one row takes behind ``history`` positions, s."""
    cache = span.new_cache(history + 1 + _STEPS)
    span.forward(_zeros(span, hidden_size, history), cache)
    step = [Part(_zeros(span, hidden_size, 1), cache)]
    first_s = _run_s(lambda: span.forward_many(step)[0])
    num_steps = max(1, min(_STEPS, int(_ENOUGH_S / first_s)))
    return statistics.median(_run_s(lambda: span.forward_many(step)[0]) for _ in range(num_steps))


def _zeros(span: Span, hidden_size: int, num_tokens: int) -> torch.Tensor:
    return torch.zeros((1, num_tokens, hidden_size), dtype=span.dtype, device=span.device)


def _run_s(forward: Callable[[], torch.Tensor]) -> float:
    """Return how long ``forward`` takes until its output is there, s."""
    started_s = time.perf_counter()
    float(forward().sum())  # Waits for the device.
    return time.perf_counter() - started_s
