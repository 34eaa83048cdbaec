"""What round trips cost an answer: the law, texts to write, and the time that writing them takes.

Runs in the thread that generates; how links are delayed is decided by ``fleet``.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

_LANGUAGES = ("Dutch", "French", "German", "Italian", "Polish", "Swedish", "Danish", "Czech", "Greek", "Irish")
LIST = "\n\n".join(
    f"hunspell-{name.lower()}: {name} dictionary for hunspell\n\n"
    f"This package contains the {name} dictionary for the hunspell spell checker. It is used by office programs and by "
    "text editors."
    for name in _LANGUAGES
)
"""Text that repeats itself as lists and tables do: entries that differ in one name."""
PROSE = (
    "gardenplan: draws the beds of a vegetable garden\n\n"
    "Whoever grows beans knows that last year's notes are always under the seed box. This program keeps them instead. "
    "Draw a bed with the mouse, say what stands in it, and each spring you are told where cabbage must not return. "
    "Rain, frost and harvest can be entered by hand or read from a weather station on the same network. "
    "Plans are printed at any scale, for people who would rather carry paper outside. "
    "Several gardeners may share one plot; their changes are merged by date, and nobody's carrots get lost. "
    "A small shop list shows which seeds are missing before the first of March, with prices if you type them. "
    "Old beds stay visible as thin grey lines, so mistakes teach something. Nothing is sent anywhere."
)
"""Text without repetition: every sentence says another thing."""


def law_s(compute_s: float, num_stages: int, round_trip_s: float) -> float:
    """Return what one token takes when stages push to each other: each of ``num_stages`` + 1 hops is half a round trip.

    Args:
        compute_s: the same token's time without round trips.
        num_stages: servers on the route.
        round_trip_s: between any two neighbours on it.
    """
    return compute_s + (num_stages + 1) * round_trip_s / 2


@dataclass(frozen=True)
class Written:
    """What one generation gave."""

    tokens: torch.Tensor
    """Prompt and new tokens, ``[1, tokens]``."""
    num_tokens: int
    """New tokens after those that came first."""
    num_steps: int
    """Calls of the model that gave them."""
    seconds: float
    """What they took; the prefill is not in it."""
    step_s: float
    """What one of those calls took, the median: stalls of a shared machine are not in it."""

    @property
    def per_s(self) -> float:
        """Tokens per second."""
        return self.num_tokens / self.seconds


class _Clock(BaseStreamer):
    """Notes when tokens come, and how many at once; the first call is the prompt."""

    def __init__(self) -> None:
        self.came: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the time."""
        self.came.append((time.perf_counter(), value.numel()))

    def end(self) -> None:
        """Nothing more to note."""


class FollowText(LogitsProcessor):
    """Lets a model write a given text, so that what it is like decides how well candidates fit, and not the model.

    Args:
        ids: the text, prompt included.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores ``[rows, vocabulary]`` that allow the next token of the text alone."""
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, self._ids[input_ids.shape[1]]] = 0.0
        return allowed


def write(model: Any, prompt: torch.Tensor, num_tokens: int, how: dict[str, Any], text: Sequence[int] = ()) -> Written:
    """Generate greedily.

    Args:
        model: transformers' or a client's.
        prompt: ``[1, tokens]``.
        num_tokens: new tokens.
        how: further settings of ``generate``: ``prompt_lookup_num_tokens`` or ``assistant_model``.
        text: ids that are written, prompt included; empty: what the model chooses.
    """
    clock = _Clock()
    tokens = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        logits_processor=LogitsProcessorList([FollowText(text)] if text else []),
        streamer=clock,
        **how,
    )
    times_s, counts = zip(*clock.came[1:], strict=True)
    steps_s = [later_s - earlier_s for earlier_s, later_s in itertools.pairwise(times_s)]
    return Written(tokens, sum(counts[1:]), len(steps_s), sum(steps_s), statistics.median(steps_s))
