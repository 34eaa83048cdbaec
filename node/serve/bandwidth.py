"""How fast a server moves steps and outputs: a bound that its donor sets. Pure: time is passed in."""

from __future__ import annotations

_BURST_S = 0.25
"""What was not used may be used later, up to so much of it: single steps are not delayed by a bound that they keep."""
_SHARE_S = 0.05


class Bandwidth:
    """A token bucket that may go into debt: who moves bytes waits until they are paid.

    Args:
        bytes_per_s: what may be moved, in both directions together; None: any amount.
    """

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self._bytes_per_s = bytes_per_s
        self.share_bytes = max(1, int(bytes_per_s * _SHARE_S)) if bytes_per_s else 0
        """What one session may take before it is another one's turn; 0: there is no bound."""
        self._free_bytes = bytes_per_s * _BURST_S if bytes_per_s else 0.0
        self._at_s: float | None = None

    def delay_s(self, num_bytes: int, now_s: float) -> float:
        """Take ``num_bytes`` at ``now_s`` and return how long to wait before they are moved, s."""
        if not self._bytes_per_s:
            return 0.0
        elapsed_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        most = self._bytes_per_s * _BURST_S
        self._free_bytes = min(most, self._free_bytes + elapsed_s * self._bytes_per_s) - num_bytes
        return max(0.0, -self._free_bytes / self._bytes_per_s)
