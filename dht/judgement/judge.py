"""All cases, earlier before later: who is convicted, whose claims were false, and who is no longer listened to. Pure.

A case sees of the others what was settled when its claim was signed, so the outcome does not depend on who reads when.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dht.claim import Claim
from dht.judgement.docket import Case, FirstSeen
from dht.judgement.holdings import Holdings
from dht.judgement.outcomes import Outcomes, Ruling, State
from dht.judgement.proceedings import Bench, rule
from dht.judgement.timeline import Timeline
from dht.reputation import Conviction, OpenFail, Rejection
from dht.rules import Rules

MAX_REJECTIONS = 2
"""Whoever has more false claims that are not forgotten is not listened to."""

MEMORY_EPOCHS = 56
"""A false claim, and a lost bond, are held against its author for so many epochs."""

HOLDER_EPOCHS = 8
"""Who holds blocks is read from the receipts of so many epochs before the claim's."""

NOTHING_SETTLED: Mapping[bytes, Ruling] = MappingProxyType({})

_OPEN = (State.PENDING, State.UPHELD, State.UNRESOLVED, State.LOCAL)


@dataclass(frozen=True, slots=True)
class Court:
    """What all cases of one swarm are judged by, besides their records."""

    rules: Rules  # of the swarm
    holdings: Holdings  # from the receipts
    credibility: Mapping[int, Mapping[str, int]]  # by epoch: of peers as of its start, in units of 2**-40
    anchors: Collection[str]  # peer ids
    first_seen_s: FirstSeen = field(default_factory=dict)  # where this node has watched; empty: nowhere

    def holders(self, claim: Claim) -> frozenset[str]:
        """Return the peers that hold the blocks that a claim is about, the parties as well."""
        work, before = claim.work, range(claim.epoch - HOLDER_EPOCHS, claim.epoch)
        return self.holdings.holders(work.manifest, work.start, work.end, before)

    def bench(self, case: Case, bondless: frozenset[str]) -> Bench:
        """Return what one case is judged by."""
        return Bench(
            rules=self.rules,
            holders=self.holders(case.claim),
            credibility=self.credibility.get(case.claim.epoch, {}),
            anchors=self.anchors,
            bondless=bondless,
            first_seen_s=self.first_seen_s,
        )


def judge(
    cases: Iterable[Case], court: Court, now_s: float, settled: Mapping[bytes, Ruling] = NOTHING_SETTLED
) -> Outcomes:
    """Say what follows from all cases as of unix second ``now_s``.

    Args:
        cases: As ``open_cases`` orders them.
        court: What they are judged by.
        now_s: Unix seconds; nothing that was signed later may be among them.
        settled: Rulings that this node found final before, by the hash of the claim: they stand, whatever turns up, and
            whether or not the claim is among the cases.
    """
    cases = tuple(cases)
    known = {case.hash for case in cases}
    rulings = sorted(
        (ruling._replace(phase=None) for ruling in settled.values() if ruling.claim not in known),
        key=lambda ruling: (ruling.settled_s, ruling.claim),
    )
    by_accuser: dict[str, list[Ruling]] = defaultdict(list)
    for ruling in rulings:
        by_accuser[ruling.accuser].append(ruling)
    backed = [ruling for ruling in rulings if ruling.backed_by]
    for case in cases:
        found = settled.get(case.hash) or rule_at_once(case, by_accuser[case.claim.accuser], court)
        if found is None:
            found = rule(case, court.bench(case, _bondless(case, backed)), now_s)
        rulings.append(found)
        by_accuser[found.accuser].append(found)
        backed += [found] if found.backed_by else []
    return _outcomes(rulings)


def rule_at_once(case: Case, mine: Iterable[Ruling], court: Court) -> Ruling | None:
    """Rule on a claim that needs no committee, because of when it came or of what its author claimed before.

    Args:
        case: The claim; what was signed about it does not matter.
        mine: Rulings on what its author claimed before.
        court: Whose credibilities do not matter.

    Returns:
        None: it needs one.
    """
    claim, clock = case.claim, Timeline.of(case.claim.t, court.rules)
    heard = [ruling for ruling in mine if ruling.state is not State.IGNORED]
    if not clock.is_claim_timely(court.first_seen_s.get(case.hash)):
        return _ruling(case, State.IGNORED, "It was published later than it says.")
    if any((ruling.epoch, ruling.number) == (claim.epoch, claim.number) for ruling in heard):
        return _ruling(case, State.REJECTED, "Its author has signed two claims for one place.")
    if any(ruling.chunk == case.chunk for ruling in heard):
        return _ruling(case, State.IGNORED, "Its author has claimed the same before.")
    if sum(ruling.state is State.REJECTED and _counts(ruling, claim) for ruling in heard) > MAX_REJECTIONS:
        return _ruling(case, State.IGNORED, "Too many claims of its author were false.")
    return None


def _counts(ruling: Ruling, claim: Claim) -> bool:
    """Say whether a ruling was settled when a later claim was signed, and is not forgotten."""
    return ruling.is_final and ruling.settled_s <= claim.t and claim.epoch - ruling.epoch <= MEMORY_EPOCHS


def _bondless(case: Case, backed: Iterable[Ruling]) -> frozenset[str]:
    """Return the peers whose bond is staked in another case, or was lost in one."""
    claim = case.claim
    return frozenset(
        ruling.backed_by
        for ruling in backed
        if ruling.settled_s > claim.t or (_counts(ruling, claim) and _has_lost(ruling, ruling.backed_by))
    )


def _has_lost(ruling: Ruling, peer: str) -> bool:
    return ruling.state is (State.UPHELD if peer == ruling.accused else State.REJECTED)


def _ruling(case: Case, state: State, why: str) -> Ruling:
    claim = case.claim
    parties = (claim.accuser, case.accused)
    return Ruling(case.hash, *parties, claim.epoch, claim.number, case.chunk, state, why, claim.t)


def _outcomes(rulings: list[Ruling]) -> Outcomes:
    convicted: dict[object, Conviction] = {}
    for ruling in rulings:
        if ruling.state is State.UPHELD:
            convicted.setdefault(ruling.chunk, Conviction(ruling.accused, ruling.epoch))
    return Outcomes(
        convictions=tuple(sorted(convicted.values())),
        rejections=tuple(
            sorted(Rejection(each.accuser, each.epoch) for each in rulings if each.state is State.REJECTED)
        ),
        open_fails=tuple(sorted({OpenFail(each.accuser, each.accused) for each in rulings if each.state in _OPEN})),
        undecided=tuple(each.claim for each in rulings if not each.is_final),
        rulings=tuple(rulings),
    )
