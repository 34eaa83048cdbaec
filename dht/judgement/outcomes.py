"""What follows from all that was claimed, in the terms that reputation counts in. Pure data."""

from enum import Enum
from typing import NamedTuple

from dht.claim import ClaimedChunk
from dht.judgement.timeline import Phase
from dht.judgement.votes import Tally
from dht.reputation import Conviction, OpenFail, Rejection


class State(Enum):
    """Where a claim stands."""

    PENDING = "pending"  # on trial
    UPHELD = "upheld"  # the work was false
    REJECTED = "rejected"  # the claim was false
    UNRESOLVED = "unresolved"  # the last level could not tell; nobody is punished
    LOCAL = "local"  # too few hold the blocks: everyone thinks what it thinks
    IGNORED = "ignored"  # nobody needs to look at it


class Ruling(NamedTuple):
    """All that is known of one claim, so that it can be explained."""

    claim: bytes  # hash of the claim, 32 bytes
    accuser: str
    accused: str
    epoch: int  # of the claim
    number: int  # of the claim in its epoch
    chunk: ClaimedChunk
    state: State
    why: str  # one sentence for people
    settled_s: int  # unix second from which on it stands; where it is pending: from which on it will at the latest
    level: int = 0  # that has judged last: 1 to 3; 0: none has, as in a default judgement
    is_final: bool = True  # False: on trial, or upheld so far
    phase: Phase | None = None  # what may be signed now
    committees: tuple[tuple[str, ...], ...] = ()  # of the levels that were called, from the first; () where one was not
    tallies: tuple[Tally | None, ...] = ()  # of the same levels; None: not closed, or not called
    loser: str = ""  # who may appeal now; empty: nobody
    defenders: tuple[str, ...] = ()  # anchors that may deny it for an accused that is away
    backed_by: str = ""  # who forced the last level with its bond; empty: nobody

    def committee(self, level: int) -> tuple[str, ...]:
        """Return the members of a level; none where it was not called."""
        return self.committees[level - 1] if len(self.committees) >= level else ()


class Outcomes(NamedTuple):
    """What follows from all claims, as of one moment; every part in one order, whatever order the records came in."""

    convictions: tuple[
        Conviction, ...
    ]  # once for each chunk, whoever claimed it, in the epoch of the first upheld claim
    rejections: tuple[Rejection, ...]
    open_fails: tuple[OpenFail, ...]
    undecided: tuple[bytes, ...]  # hashes of claims that are not final
    rulings: tuple[Ruling, ...]  # every claim's, by the time at which it was signed

    @property
    def settled(self) -> dict[bytes, Ruling]:
        """Return what is final, by the hash of the claim: for whoever judges again later."""
        return {ruling.claim: ruling for ruling in self.rulings if ruling.is_final}
