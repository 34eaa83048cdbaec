"""What a server finds out about its own speed, in bounded time."""

import time

import pytest
import torch

from node.serve.measure import measure

HIDDEN = 4


class PacedSpan:
    """Takes ``step_s`` for a decode step and ``token_s`` for each token of a prompt; notes what it was asked."""

    start, end, dtype, device = 2, 5, torch.float32, torch.device("cpu")

    def __init__(self, step_s, token_s):
        self.prompts, self.histories = [], []
        self._step_s, self._token_s = step_s, token_s

    def new_cache(self, max_length):
        return {"room": max_length, "used": 0}

    def forward(self, hidden, cache):
        self.prompts.append(hidden.shape[1])
        return self._run(hidden, cache, self._token_s * hidden.shape[1])

    def forward_many(self, parts):
        (part,) = parts
        self.histories.append(part.cache["used"])
        return [self._run(part.hidden, part.cache, self._step_s)]

    def _run(self, hidden, cache, duration_s):
        cache["used"] += hidden.shape[1]
        assert hidden.shape == (1, hidden.shape[1], HIDDEN)
        assert cache["used"] <= cache["room"]
        time.sleep(duration_s)
        return hidden


def test_a_step_and_a_long_prompt_are_measured_apart():
    span = PacedSpan(step_s=0.01, token_s=0.0005)
    cost = measure(span, HIDDEN)
    assert cost.blocks_per_s == pytest.approx(3 / 0.01, rel=0.5)
    assert cost.prefill_blocks_per_s == pytest.approx(3 / 0.0005, rel=0.5)
    assert max(span.prompts) == 256
    assert min(span.histories) == 64


def test_a_slow_machine_is_asked_for_no_longer_prompt_and_few_steps():
    span = PacedSpan(step_s=0.5, token_s=0.03)
    started_s = time.perf_counter()
    cost = measure(span, HIDDEN)
    assert time.perf_counter() - started_s < 4
    assert span.prompts == [16, 16]
    assert len(span.histories) == 2
    assert cost.prefill_blocks_per_s == pytest.approx(3 / 0.03, rel=0.5)
    assert cost.blocks_per_s == pytest.approx(3 / 0.5, rel=0.5)
