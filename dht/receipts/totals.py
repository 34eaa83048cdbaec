"""Add up receipts: what one peer gave and took, per peer and per model. Pure.

Receipts count up within their slot, so what was done since a moment is the newest one less the newest one before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self, TypeVar

from dht.work import Receipt, Slot, WorkKind

_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class Change:
    """What has been counted in one slot."""

    newest: Receipt
    before: Receipt | None = None  # the newest one of an earlier time in the same slot; None: all of it counts

    def since(self, counter: str) -> int:
        """Return by how much a counter of the receipt has risen."""
        risen = int(getattr(self.newest, counter))
        return max(0, risen - (int(getattr(self.before, counter)) if self.before is not None else 0))


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
    total = Totals()
    sessions: dict[Slot, int] = {}
    for change in changes:
        total += _without_sessions(change)
        lane = change.newest.slot._replace(work_kind=WorkKind.DECODE)
        sessions[lane] = max(sessions.get(lane, 0), change.since("sessions"))
    return total + Totals(sessions=sum(sessions.values()))


def _without_sessions(change: Change) -> Totals:
    amount, bytes_in, bytes_out = (change.since(counter) for counter in ("amount", "bytes_in", "bytes_out"))
    if change.newest.work_kind is WorkKind.RELAY:
        return Totals(relayed_kib=amount, bytes_in=bytes_in, bytes_out=bytes_out)
    prefill = amount if change.newest.work_kind is WorkKind.PREFILL else 0
    return Totals(amount, prefill, change.since("work"), 0, bytes_in, bytes_out)


def group(changes: Iterable[Change], key: Callable[[Receipt], _K]) -> list[tuple[_K, Totals]]:
    """Sum up changes by a key of their receipts; most block-tokens first, then by key."""
    groups: dict[_K, list[Change]] = {}
    for change in changes:
        groups.setdefault(key(change.newest), []).append(change)
    sums = [(name, totals_of(members)) for name, members in groups.items()]
    return sorted(sums, key=lambda pair: (-pair[1].block_tokens, -pair[1].relayed_kib, str(pair[0])))
