"""Let the numbers of receipts begin by the clock, so that a process signs none that an earlier one may have signed.

    numbers of one lane in an epoch    1 ................... half ............................... all
    who serves since an earlier epoch  1 2 3 ...
    who began in this epoch            (never used)          | its first third: from here on
                                                                    | its second third: from here on

An identity's earlier process may have run on another machine, or its ledger may be lost, old or another's. Nothing
tells it; so every process begins as if nothing were known, and what its ledger does know counts as well. A lane gets a
number for every 64 tokens, far fewer than the clock gives: 21 a second with epochs of six hours. Pure but for
``LedgerByClock``, which any thread may call as it may call ``Ledger``.
"""

from __future__ import annotations

from dht.receipts.ledger import Ledger
from dht.rules import MAX_SKEW_S, Rules
from dht.work import MAX_SEQ, Slot

NUM_LEFT = 2**16
"""Numbers that a lane has in any case, however late in an epoch a process begins."""


def first_number(epoch: int, began_s: float, rules: Rules) -> int:
    """Say which is the least number that a provider may sign in an epoch.

    Args:
        epoch: Of the receipt.
        began_s: When this process began to sign, unix seconds; no earlier one of its identity runs any more.
        rules: Of the swarm.
    """
    # Who signed before may have had a clock that is ahead of ours.
    elapsed_s = began_s + MAX_SKEW_S - rules.start_of(epoch)
    if elapsed_s <= 0:
        return 1
    half = MAX_SEQ // 2
    return half + 1 + int((half - NUM_LEFT) * min(1.0, elapsed_s / rules.epoch_s))


class LedgerByClock(Ledger):
    """A ledger whose providers' numbers begin by the clock."""

    _rules: Rules | None = None
    _began_s = 0.0

    def begin(self, rules: Rules, began_s: float) -> None:
        """Count from now on; see ``first_number``."""
        self._rules, self._began_s = rules, began_s

    def reserve_in_memory(self, own: str, slot: Slot, seq: int = 1) -> int | None:
        """Do what ``Ledger.reserve_in_memory`` does."""
        return super().reserve_in_memory(own, slot, self._least(own, slot, seq))

    def reserve(self, own: str, slot: Slot, seq: int = 1) -> int:
        """Do what ``Ledger.reserve`` does."""
        return super().reserve(own, slot, self._least(own, slot, seq))

    def _least(self, own: str, slot: Slot, seq: int) -> int:
        # Who consumes draws lanes anew when it starts, and takes the numbers that it is given.
        if self._rules is None or own != slot.provider:
            return seq
        return max(seq, first_number(slot.epoch, self._began_s, self._rules))
