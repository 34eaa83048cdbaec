"""Remember which peers did not answer, and for how long searches pass them by: longer each time, within a bound.

In place of hivemind's ``Blacklist``, whose stock behaviour this mends: its pauses grow without bound or not at all, and
it keeps every peer that ever failed. Time is passed in. Pure but for its own state.
"""

from collections import OrderedDict
from collections.abc import Hashable

FIRST_S = 5.0
"""Seconds for which a peer is passed by that did not answer once."""

LONGEST_S = 80.0
"""Seconds for which one is passed by that never answers; one that is back is found after that at the latest."""

FORGOTTEN_S = 600.0
"""Seconds after the end of a pause for which a failure still makes the next one longer."""

MAX_SHUNNED = 4096
"""Peers that are remembered; the one that failed least lately is forgotten first."""


class Shunned:
    """The peers that searches pass by."""

    def __init__(self) -> None:
        self._failures: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # when the pause ends, its length

    def is_shunned(self, peer: Hashable, now_s: float) -> bool:
        """Say whether a peer is passed by now; monotonic seconds."""
        return peer in self._failures and now_s < self._failures[peer][0]

    def failed(self, peer: Hashable, now_s: float) -> None:
        """Pass by a peer that did not answer, twice as long as the last time; during a pause nothing changes."""
        until_s, length_s = self._failures.get(peer, (0.0, 0.0))
        if now_s < until_s:
            return
        longer_s = 2 * length_s if now_s < until_s + FORGOTTEN_S else 0.0
        pause_s = min(LONGEST_S, max(FIRST_S, longer_s))
        self._failures[peer] = now_s + pause_s, pause_s
        self._failures.move_to_end(peer)
        if len(self._failures) > MAX_SHUNNED:
            self._failures.popitem(last=False)

    def answered(self, peer: Hashable) -> None:
        """Forget the failures of a peer that is there."""
        self._failures.pop(peer, None)
