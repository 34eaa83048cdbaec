"""Hold what stands on the DHT about peers beside their receipts: audits, claims and what became of them, lies, heirs.

This file does no I/O; ``epoch_reader`` and ``board`` read what is put in here. Pure.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dht.audit import Audit
from dht.claim import Claim
from dht.contest import Contest
from dht.equivocation import Equivocation
from dht.ident import Succession
from dht.reputation import Conviction, OpenFail, Rejection
from dht.ruling import RulingRecord
from dht.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Proofs:
    """Records whose signatures have been checked, in any order; a repeated one counts once."""

    equivocations: tuple[Equivocation, ...] = ()
    successions: tuple[Succession, ...] = ()
    audits: tuple[Audit, ...] = ()
    claims: tuple[Claim, ...] = ()
    contests: tuple[Contest, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    rulings: tuple[RulingRecord, ...] = ()


class Case(NamedTuple):
    """One claim, for people."""

    accuser: str
    accused: str
    epoch: int  # in which it was made
    state: str  # "open", "upheld", "upheld for now", "rejected"; "undecided", "local", "ignored": nothing follows
    why: str  # one sentence


class Judged(NamedTuple):
    """What has become of claims."""

    convictions: tuple[Conviction, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    open_fails: tuple[OpenFail, ...] = ()
    refuted: frozenset[OpenFail] = frozenset()  # whose failed audits of whom were found false: these count no more
    cases: tuple[Case, ...] = ()  # every claim
