"""A streamer that acts in the middle of an answer, and notes when tokens came. Runs in the thread that generates."""

from __future__ import annotations

import itertools
import time
from typing import Any


class AtTokens:
    """A streamer for ``generate`` that acts when so many tokens have come, and notes when each came.

    Args:
        acts: what to do, by the number of tokens after which it is done.
    """

    def __init__(self, acts: dict[int, Any]) -> None:
        self.times_s: list[float] = []
        """When each token came, by the monotonic clock."""
        self._acts = acts
        self._has_seen_prompt = False

    def put(self, value: Any) -> None:
        """Take the prompt, then one token after the other."""
        del value
        if not self._has_seen_prompt:
            self._has_seen_prompt = True
            return
        self.times_s.append(time.monotonic())
        act = self._acts.pop(len(self.times_s), None)
        if act is not None:
            act()

    def end(self) -> None:
        """Take the end."""

    def pauses_s(self) -> list[float]:
        """Return the times between tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times_s)]
