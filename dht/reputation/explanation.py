"""Say where a peer's standing comes from, in numbers; the words for people are made elsewhere. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dht.reputation.evidence import Evidence
from dht.reputation.fixed_point import decay
from dht.reputation.scores import Scores, Standing
from dht.reputation.successions import inherited, settle


class Inflow(NamedTuple):
    """Trust that comes from one peer. Numbers are Q40."""

    peer: str
    flow: int  # how much of F
    credit: int  # what it owes to: work and passed audits, halved with age, units


class Weight(NamedTuple):
    """A conviction, or a rejected claim."""

    epoch: int
    left: int  # what it still counts, Q40


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is behind one peer's standing."""

    peer: str
    standing: Standing
    heir: str | None  # who has taken its place and has what it left; None: nobody, or it lives
    inflows: tuple[Inflow, ...]  # the largest first
    num_inflows: int  # how many there are in all
    convictions: tuple[Weight, ...]  # the newest first
    rejections: tuple[Weight, ...]  # claims of its own that were rejected, the newest first
    doubted_by: tuple[str, ...]  # whose trust it does not get while their claims against it are open
    doubts: tuple[str, ...]  # whom it does not trust while its claims are open
    graduation_flow: int  # flow from which on it is no newcomer, Q40; 0: nobody has flow
    missing_flow: int  # how much of that it lacks, Q40


def why(scores: Scores, evidence: Evidence, peer: str, most: int = 10) -> Explanation:
    """Explain a peer's standing.

    Args:
        scores: Computed from ``evidence``.
        evidence: The same as there.
        peer: Whose standing.
        most: How many inflows to list.
    """
    estates = settle(evidence.successions, scores.epoch)
    known = inherited(evidence, estates)
    rules, standing = scores.rules, scores.standing(peer)
    flows = sorted(scores.moved.inflows(peer).items(), key=lambda item: (-item[1], item[0]))
    graduation = rules.graduation
    needed = -(-scores.typical_flow * graduation.numerator // graduation.denominator)
    return Explanation(
        peer=peer,
        standing=standing,
        heir=estates[peer].heir if peer in estates else None,
        inflows=tuple(Inflow(giver, flow, scores.credit[giver][peer]) for giver, flow in flows[:most]),
        num_inflows=len(flows),
        convictions=_left(
            (epoch for who, epoch in known.convictions if who == peer), scores, rules.conviction_half_life_epochs
        ),
        rejections=_left(
            (epoch for who, epoch in known.rejections if who == peer), scores, rules.claim_half_life_epochs
        ),
        doubted_by=tuple(sorted({fail.accuser for fail in known.open_fails if fail.accused == peer})),
        doubts=tuple(sorted({fail.accused for fail in known.open_fails if fail.accuser == peer})),
        graduation_flow=needed,
        missing_flow=max(0, needed - standing.flow),
    )


def _left(epochs: Iterable[int], scores: Scores, half_life: int) -> tuple[Weight, ...]:
    counted = (epoch for epoch in epochs if 0 <= scores.epoch - epoch < scores.rules.evidence_epochs)
    return tuple(Weight(epoch, decay(scores.epoch - epoch, half_life)) for epoch in sorted(counted, reverse=True))
