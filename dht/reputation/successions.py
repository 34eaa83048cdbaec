"""Say which identity inherits from which, and rename what the old ones left.

    A ──> B ──> C      what A and B did before they ended counts for C; what they did afterwards counts for nobody
    A ──> B, A ──> C   A named two heirs: nobody inherits
    A ──> B ──> A      nobody inherits

Convictions, rejections and equivocations follow whenever they are found: no one gets rid of them by a new key.
Who named an heir is dead in every case. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dht.reputation.evidence import Affiliated, Conviction, Evidence, OpenFail, Pass, Rejection, Succeeded, Work


@dataclass(frozen=True, slots=True)
class Estate:
    """What becomes of what a dead identity has left."""

    heir: str | None  # the last of the chain; None: nobody inherits
    epoch: int  # what is dated from here on counts for nobody


def settle(successions: Iterable[Succeeded], epoch: int) -> dict[str, Estate]:
    """Find the heir of every identity that has ended by ``epoch``."""
    named: dict[str, set[str]] = {}
    ends: dict[str, int] = {}
    for old, new, since in successions:
        if since <= epoch:
            named.setdefault(old, set()).add(new)
            ends[old] = min(since, ends.get(old, since))
    heirs = {old: next(iter(new)) for old, new in named.items() if len(new) == 1}
    return {old: _follow(old, heirs, ends) for old in named}


def _follow(old: str, heirs: dict[str, str], ends: dict[str, int]) -> Estate:
    """Follow a chain of heirs to one who lives; ``ends`` has everyone who does not."""
    peer, first_end = old, ends[old]
    for _ in range(len(ends)):
        heir = heirs.get(peer)
        if heir is None or heir not in ends:
            return Estate(heir, first_end)
        peer, first_end = heir, min(first_end, ends[heir])
    return Estate(None, first_end)  # the chain has gone through more identities than have ended: it is a circle


def inherited(evidence: Evidence, estates: dict[str, Estate]) -> Evidence:
    """Rename the dead to their heirs, and leave out what counts for nobody."""
    if not estates:
        return evidence

    def heir_of(peer: str) -> str | None:
        estate = estates.get(peer)
        return peer if estate is None else estate.heir

    def living(peer: str, epoch: int) -> str | None:
        estate = estates.get(peer)
        if estate is None:
            return peer
        return estate.heir if epoch < estate.epoch else None

    works = ((living(w.consumer, w.epoch), living(w.provider, w.epoch), w.epoch, w.work) for w in evidence.works)
    passes = ((living(p.auditor, p.epoch), living(p.provider, p.epoch), p.epoch) for p in evidence.passes)
    convictions = ((heir_of(peer), epoch) for peer, epoch in evidence.convictions)
    rejections = ((heir_of(peer), epoch) for peer, epoch in evidence.rejections)
    fails = ((heir_of(accuser), heir_of(accused)) for accuser, accused in evidence.open_fails)
    liars = map(heir_of, evidence.equivocators)
    affiliations = ((heir_of(owner), heir_of(member)) for owner, member in evidence.affiliations)
    return Evidence(
        works=tuple(Work(c, p, epoch, work) for c, p, epoch, work in works if c is not None and p is not None),
        passes=tuple(Pass(a, p, epoch) for a, p, epoch in passes if a is not None and p is not None),
        convictions=tuple(Conviction(peer, epoch) for peer, epoch in convictions if peer is not None),
        rejections=tuple(Rejection(peer, epoch) for peer, epoch in rejections if peer is not None),
        open_fails=tuple(OpenFail(a, b) for a, b in fails if a is not None and b is not None),
        equivocators=frozenset(peer for peer in liars if peer is not None),
        affiliations=tuple(Affiliated(a, b) for a, b in affiliations if a is not None and b is not None),
    )
