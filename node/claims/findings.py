"""What an examination of a claim says, and who makes one. Pure data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dht.claim import Claim
from dht.verdict import Opinion
from node.check.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Finding:
    """What this node thinks of a claim."""

    opinion: Opinion
    """Upheld: the work was false."""
    error_ppm: int
    """Median error, millionths of the span's increment; 0: nothing was compared."""
    why: str
    """One sentence, for people."""


Examine: TypeAlias = Callable[[Evidence, Claim], Finding]
"""Runs verified evidence again. Called in a thread, one at a time; takes as long as it likes, but
ends where it ``look``s (``node.check.patience``) when the node leaves."""


def cannot_tell(why: str) -> Finding:
    """Return what is said where nothing follows from the evidence."""
    return Finding(Opinion.INCONCLUSIVE, 0, why)
