"""List what the score is computed from: the essence of records that others have checked.

Peers are peer ids. What an entry means if it is given twice stands beside it. Nothing is checked here: signatures,
claims and verdicts are whoever calls. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Work(NamedTuple):
    """Work that both signed for. Entries add up, so only the newest receipt of a slot may be given."""

    consumer: str  # whom it was for
    provider: str  # who worked
    epoch: int
    work: int  # block-tokens, not negative


class Pass(NamedTuple):
    """An audit that found nothing wrong. An auditor's passes of one provider count once in an epoch."""

    auditor: str
    provider: str
    epoch: int


class Conviction(NamedTuple):
    """A claim that was upheld. Each counts, also several of one epoch."""

    peer: str  # the convicted provider
    epoch: int


class Rejection(NamedTuple):
    """A claim that was rejected. Each counts, also several of one epoch."""

    accuser: str
    epoch: int


class OpenFail(NamedTuple):
    """A claim that is not rejected: until it is, the accuser's own trust in the accused counts nothing. Counts once."""

    accuser: str
    accused: str


class Succeeded(NamedTuple):
    """An identity that ended, and the one that took its place. Counts once."""

    old: str
    new: str
    epoch: int  # from which on the old one is dead


class Affiliated(NamedTuple):
    """Two identities of one owner. Counts once, and for priority alone."""

    owner: str
    member: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known, in any order."""

    works: tuple[Work, ...] = ()
    passes: tuple[Pass, ...] = ()
    convictions: tuple[Conviction, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    open_fails: tuple[OpenFail, ...] = ()
    equivocators: frozenset[str] = field(default_factory=frozenset)
    successions: tuple[Succeeded, ...] = ()
    affiliations: tuple[Affiliated, ...] = ()


def weights(entries: Iterable[tuple[str, int]], epoch: int, table: tuple[int, ...], most: int) -> dict[str, int]:
    """Add up by peer what is left of dated entries.

    Args:
        entries: Peers and epochs.
        epoch: That of the scores; what is later than it, or older than the table is long, counts nothing.
        table: What is left of 1 at each age, Q40.
        most: No sum is larger, Q40.
    """
    sums: dict[str, int] = {}
    for peer, of_epoch in entries:
        age = epoch - of_epoch
        if 0 <= age < len(table):
            sums[peer] = sums.get(peer, 0) + table[age]
    return {peer: min(most, total) for peer, total in sums.items()}
