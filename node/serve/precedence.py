"""Whose sessions and steps come first at a server that has more to do than it can. Pure; no clock.

Levels come from receipts (``dht.standing.precedence``). They order the steps that wait for a forward pass, and they
keep some room free: of sessions and cache, as large a share as clients of higher levels have lately asked for, a fifth
at most. While nothing is known of levels, or all who ask are of one level, nothing is ordered and nothing kept free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from fractions import Fraction

MAX_KEPT = Fraction(1, 5)
"""Most of a server's room that is kept free for clients of higher levels: with an eighth contributors got 0.85 of what
they asked for at 1.5 times the load (docs/trust.md), and a quarter refuses others where there still is room."""

_NUM_REMEMBERED = 64
"""So many requests for sessions say who is asking lately."""


def _all_alike(_: str) -> int:
    return 0


class Precedence:
    """Levels of a server's clients, and who has asked lately."""

    def __init__(self, level_of: Callable[[str], int] = _all_alike) -> None:
        """Begin with nobody.

        Args:
            level_of: gives a client's level; higher goes first.
        """
        self.level_of = level_of
        self._asked: deque[int] = deque(maxlen=_NUM_REMEMBERED)

    def ask(self, client: str) -> None:
        """Note that a client has asked for a session, whether it gets one or not."""
        self._asked.append(self.level_of(client))

    def kept_from(self, client: str) -> Fraction:
        """Say which share of the room is kept free for others when ``client`` asks."""
        level = self.level_of(client)
        above = sum(other > level for other in self._asked)
        return min(MAX_KEPT, Fraction(above, len(self._asked))) if above else Fraction(0)
