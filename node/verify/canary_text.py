"""What canaries say: pieces of what the model itself has written in earlier ones, of drawn lengths. Pure.

The first one begins with a few tokens that are drawn from the vocabulary, and reads so; from then on there is text that
the model finds likely. Lengths are spread over octaves, as those of people are.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

MIN_PROMPT, MAX_PROMPT = 8, 256
"""Tokens that a canary begins with."""
MIN_NEW, MAX_NEW = 16, 128
"""Tokens that are generated."""
MAX_KEPT = 32
"""Texts that are kept."""
_FIRST = 4
"""Tokens that the first text begins with."""


@dataclass(frozen=True, slots=True)
class Script:
    """What one canary does."""

    prompt: tuple[int, ...]
    """Token ids."""
    num_new: int
    """Tokens to generate."""


class CanaryTexts:
    """Texts for canaries of one model.

    Args:
        vocab_size: ids below it are tokens.
        max_positions: of a session.
        chance: draws.
    """

    def __init__(self, vocab_size: int, max_positions: int, chance: random.Random) -> None:
        self._vocab_size = vocab_size
        self._max_positions = max_positions
        self._chance = chance
        self._texts: deque[tuple[int, ...]] = deque(maxlen=MAX_KEPT)

    def next(self) -> Script:
        """Draw what the next canary does."""
        room = max(2, self._max_positions)
        length = min(self._length(MIN_PROMPT, MAX_PROMPT), max(1, room // 2))
        num_new = max(1, min(self._length(MIN_NEW, MAX_NEW), room - length - 1))
        if not self._texts:
            first = tuple(self._chance.randrange(self._vocab_size) for _ in range(min(_FIRST, length)))
            return Script(first, num_new)
        text = self._chance.choice(self._texts)
        length = min(length, len(text))
        begin = self._chance.randrange(len(text) - length + 1)
        return Script(text[begin : begin + length], num_new)

    def keep(self, text: Sequence[int]) -> None:
        """Take a text that the model has written; a short one is not worth it."""
        if len(text) >= MIN_PROMPT:
            self._texts.append(tuple(text))

    def _length(self, least: int, most: int) -> int:
        return round(math.exp(self._chance.uniform(math.log(least), math.log(most))))
