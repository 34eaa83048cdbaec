"""Put what stands on the DHT in order: one case for each claim, with what was signed about it. Pure.

Whatever order records come in, and however often, the cases are the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from dht.claim import Claim, ClaimedChunk
from dht.contest import Contest
from dht.records import Record
from dht.verdict import Verdict
from dht.work import Receipt

FirstSeen = Mapping[bytes, float]
"""By ``record_id``: when this node first saw a record whose key it had read less than half a unit of a trial before.
What is not in it counts by its signed time alone."""


def record_id(record: Record) -> bytes:
    """Return the sha256 of a record's body, 32 bytes; of a claim that is its ``hash``."""
    return sha256(record.to_body()).digest()


@dataclass(frozen=True)
class Case:
    """A claim and all that was signed about it."""

    claim: Claim
    contests: frozenset[Contest] = frozenset()
    verdicts: frozenset[Verdict] = frozenset()

    @cached_property
    def hash(self) -> bytes:
        """Of the claim, 32 bytes."""
        return self.claim.hash

    @cached_property
    def work(self) -> Receipt:
        """The receipt that the claim holds."""
        return self.claim.work

    @cached_property
    def accused(self) -> str:
        """Peer id of who worked."""
        return self.work.provider

    @cached_property
    def chunk(self) -> ClaimedChunk:
        """What it is about."""
        return self.claim.chunk


def open_cases(claims: Iterable[Claim], contests: Iterable[Contest], verdicts: Iterable[Verdict]) -> tuple[Case, ...]:
    """Return the cases by the time of their claims, at equal times by their hashes.

    Args:
        claims: Validated, in any order; a repeated one counts once.
        contests: Like these; those of other claims are left out.
        verdicts: Like these.
    """
    by_hash = {claim.hash: claim for claim in claims}
    about: dict[bytes, tuple[set[Contest], set[Verdict]]] = {key: (set(), set()) for key in by_hash}
    for contest in contests:
        claim_of = by_hash.get(contest.claim)
        if claim_of is not None and (contest.epoch, contest.accuser) == (claim_of.epoch, claim_of.accuser):
            about[contest.claim][0].add(contest)
    for verdict in verdicts:
        claim_of = by_hash.get(verdict.claim)
        if claim_of is not None and verdict.epoch == claim_of.epoch:
            about[verdict.claim][1].add(verdict)
    return tuple(
        Case(claim, frozenset(about[key][0]), frozenset(about[key][1]))
        for key, claim in sorted(by_hash.items(), key=lambda item: (item[1].t, item[0]))
    )
