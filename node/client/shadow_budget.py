"""How much of what a client consumes may be computed a second time, for nobody.

    consumed      |====================|      block-tokens of answers
    duplicated    |=|                         at most 5 % of that, at every moment

Pure; used in the client's event loop.
"""

from __future__ import annotations

PER_MILLE = 1000
MAX_PER_MILLE = 50
"""Shadow traffic is never a larger share of what a client consumes, thousandths."""


class ShadowBudget:
    """What one client has consumed, and what of it went into duplicates.

    Args:
        per_mille: share that may be duplicated, thousandths; 0: nothing.
    """

    def __init__(self, per_mille: int) -> None:
        assert 0 <= per_mille <= MAX_PER_MILLE
        self._per_mille = per_mille
        self.consumed = 0
        """Block-tokens that were answered."""
        self.duplicated = 0
        """Block-tokens that were, or are being, computed a second time."""

    @property
    def is_open(self) -> bool:
        """Whether anything may ever be duplicated."""
        return self._per_mille > 0

    @property
    def left(self) -> int:
        """Block-tokens that may be duplicated now."""
        return self.consumed * self._per_mille // PER_MILLE - self.duplicated

    def consume(self, block_tokens: int) -> None:
        """Note what was answered."""
        self.consumed += block_tokens

    def can_spend(self, block_tokens: int) -> bool:
        """Say whether so many may be duplicated now."""
        return block_tokens <= self.left

    def spend(self, block_tokens: int) -> None:
        """Duplicate so many; before they are sent, so that two cannot spend the same."""
        assert self.can_spend(block_tokens)
        self.duplicated += block_tokens

    def give_back(self, block_tokens: int) -> None:
        """Note that nothing of what was spent was sent."""
        self.duplicated -= block_tokens
