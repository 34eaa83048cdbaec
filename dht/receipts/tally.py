"""Add receipts up: who did how much of what, for whom, with which model.

A receipt counts once, by its slot, and only the newest of a slot counts; so receipts may come in any order and from
several sources. Nothing is checked here: whoever calls has checked the signatures. Pure.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from dht.work import Receipt, Slot, WorkKind

Key = TypeVar("Key", bound=Hashable)


class Axis(Enum):
    """What sums are told apart by, beside the kind of work; the value is the receipt's field."""

    PROVIDER = "provider"
    CONSUMER = "consumer"
    MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class Sum:
    """What several receipts come to."""

    receipts: int = 0  # slots that count here
    sessions: int = 0
    amount: int = 0  # tokens, or KiB where weights were relayed
    work: int = 0  # block-tokens, or KiB
    bytes_in: int = 0  # payload bytes that the providers took
    bytes_out: int = 0  # payload bytes that they gave


class Tally:
    """The newest receipt of each slot, and what they come to."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._newest: dict[Slot, Receipt] = {}
        for receipt in receipts:
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        """Count a receipt in place of an older one of its slot."""
        slot = receipt.slot
        standing = self._newest.get(slot)
        if standing is None or standing.seq < receipt.seq:
            self._newest[slot] = receipt

    def __len__(self) -> int:
        return len(self._newest)

    def __iter__(self) -> Iterator[Receipt]:
        return iter(self._newest.values())

    def by(self, axis: Axis) -> dict[tuple[str | bytes, WorkKind], Sum]:
        """Add up by one field and the kind of work, whose units differ."""
        return _added((getattr(receipt, axis.value), receipt.work_kind, receipt) for receipt in self)

    def by_pair(self) -> dict[tuple[tuple[str, str], WorkKind], Sum]:
        """Add up by provider and consumer, and the kind of work."""
        return _added(((receipt.provider, receipt.consumer), receipt.work_kind, receipt) for receipt in self)

    def by_kind(self) -> dict[WorkKind, Sum]:
        """Add up all there is of each kind of work."""
        return {kind: total for (_, kind), total in _added((None, each.work_kind, each) for each in self).items()}


def _added(rows: Iterable[tuple[Key, WorkKind, Receipt]]) -> dict[tuple[Key, WorkKind], Sum]:
    sums: dict[tuple[Key, WorkKind], list[int]] = {}
    for key, kind, receipt in rows:
        total = sums.setdefault((key, kind), [0] * 6)
        for place, number in enumerate(
            (1, receipt.sessions, receipt.amount, receipt.work, receipt.bytes_in, receipt.bytes_out)
        ):
            total[place] += number
    return {place: Sum(*numbers) for place, numbers in sums.items()}
