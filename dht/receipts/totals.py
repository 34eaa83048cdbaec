"""Add receipts up: who did how much of what, for whom, with which model, in all or since a moment.

Receipts count up within their slot: only the newest of a slot counts, once, in whatever order they come and from many
sources; and what was done since a moment is the newest one less the newest one before it. Nothing is checked here:
whoever calls has checked the signatures. Pure.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

from dht.work import Receipt, Slot, WorkKind

_K = TypeVar("_K")


class Newest:
    """The newest receipt of each slot."""

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self._newest: dict[Slot, Receipt] = {}
        for receipt in receipts:
            self.add(receipt)

    def add(self, receipt: Receipt) -> None:
        """Take a receipt in place of an older one of its slot."""
        slot = receipt.slot
        standing = self._newest.get(slot)
        if standing is None or standing.seq < receipt.seq:
            self._newest[slot] = receipt

    def __len__(self) -> int:
        return len(self._newest)

    def __iter__(self) -> Iterator[Receipt]:
        return iter(self._newest.values())

    def changes(self) -> "Iterator[Change]":
        """Give all that was ever counted in each slot."""
        return map(Change, self)


@dataclass(frozen=True, slots=True)
class Change:
    """What has been counted in one slot."""

    newest: Receipt
    before: Receipt | None = None  # the newest one of an earlier time in the same slot; None: all of it counts

    def counted(self) -> tuple[int, ...]:
        """Say by how much amount, work, bytes in, bytes out and sessions have risen."""
        risen = _counters(self.newest)
        if self.before is None:
            return risen
        return tuple(max(0, now - then) for now, then in zip(risen, _counters(self.before), strict=True))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over slots; every field adds up."""

    tokens: int = 0  # positions times rows, of all kinds of work but relayed weights
    prefill_tokens: int = 0  # of these, the ones that were computed many at once
    block_tokens: int = 0  # tokens times blocks
    relayed_kib: int = 0  # weights handed on, KiB
    bytes_in: int = 0  # payload bytes that the provider took
    bytes_out: int = 0  # payload bytes that it gave
    sessions: int = 0  # sessions that began to count; one over two epochs counts in both

    def __add__(self, other: Self) -> "Totals":
        """Add field by field."""
        return Totals(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def totals_of(changes: Iterable[Change]) -> Totals:
    """Sum up changes.

    Prefill and decode of a session share its lane, so a lane has as many sessions as the kind of work with the most.
    """
    tokens = prefill = block_tokens = relayed = bytes_in = bytes_out = 0
    sessions: dict[tuple[str, str, int, int], int] = {}
    for change in changes:
        receipt = change.newest
        amount, work, taken, given, begun = change.counted()
        bytes_in += taken
        bytes_out += given
        if receipt.work_kind is WorkKind.RELAY:
            relayed += amount
        else:
            tokens += amount
            block_tokens += work
            prefill += amount if receipt.work_kind is WorkKind.PREFILL else 0
        lane = (receipt.provider, receipt.consumer, receipt.epoch, receipt.lane)
        sessions[lane] = max(sessions.get(lane, 0), begun)
    return Totals(tokens, prefill, block_tokens, relayed, bytes_in, bytes_out, sum(sessions.values()))


def group(changes: Iterable[Change], key: Callable[[Receipt], _K]) -> list[tuple[_K, Totals]]:
    """Sum up changes by a key of their receipts; most block-tokens first, then by key."""
    groups: dict[_K, list[Change]] = {}
    for change in changes:
        groups.setdefault(key(change.newest), []).append(change)
    sums = [(name, totals_of(members)) for name, members in groups.items()]
    return sorted(sums, key=lambda pair: (-pair[1].block_tokens, -pair[1].relayed_kib, str(pair[0])))


def _counters(receipt: Receipt) -> tuple[int, ...]:
    return (receipt.amount, receipt.work, receipt.bytes_in, receipt.bytes_out, receipt.sessions)
