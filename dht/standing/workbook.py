"""Add up receipts by pair and epoch, and remember which blocks each provider worked on.

Only the newest receipt of a slot counts, in whatever order they come and however often. Of each slot no more is kept
than its number and its work, because a window may hold a hundred thousand. Nothing is checked here: whoever calls has
checked the signatures. Pure.
"""

from collections.abc import Iterable

from dht.reputation import Work
from dht.work import Receipt, Slot, WorkKind


class Workbook:
    """Work of a window of epochs."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._slots: dict[Slot, tuple[int, int]] = {}  # seq and work of the newest receipt
        self._spans: dict[tuple[bytes, str, int, int, int], Receipt] = {}
        for receipt in receipts:
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        """Count a receipt in place of an older one of its slot.

        Work counts as the receipt has it: block-tokens, and for weights that were handed on a KiB as one of them.
        """
        slot = receipt.slot
        standing = self._slots.get(slot)
        if standing is None or standing[0] < receipt.seq:
            self._slots[slot] = (receipt.seq, receipt.work)
        if receipt.work_kind is WorkKind.RELAY or not receipt.amount:
            return  # Who hands weights on need not be able to run them.
        span = (receipt.manifest, receipt.provider, receipt.start, receipt.end, receipt.epoch)
        self._spans.setdefault(span, receipt)

    def drop_before(self, epoch: int) -> None:
        """Forget what is older."""
        self._slots = {slot: work for slot, work in self._slots.items() if slot.epoch >= epoch}
        self._spans = {span: receipt for span, receipt in self._spans.items() if receipt.epoch >= epoch}

    def copy(self) -> "Workbook":
        """Give one that others may read in another thread while this one goes on."""
        copied = Workbook()
        copied.__dict__.update({name: dict(kept) for name, kept in vars(self).items()})
        return copied

    @property
    def peers(self) -> frozenset[str]:
        """All who worked, or were worked for."""
        return frozenset(peer for slot in self._slots for peer in (slot.provider, slot.consumer))

    def works(self, until: int) -> tuple[Work, ...]:
        """Add up by pair and epoch, to the end of epoch ``until``."""
        sums: dict[tuple[str, str, int], int] = {}
        for slot, (_, work) in self._slots.items():
            if slot.epoch <= until:
                pair = (slot.consumer, slot.provider, slot.epoch)
                sums[pair] = sums.get(pair, 0) + work
        return tuple(Work(*pair, work) for pair, work in sums.items())

    def spans(self) -> tuple[Receipt, ...]:
        """Give one receipt for each span of a model that a provider worked on in an epoch."""
        return tuple(self._spans.values())
