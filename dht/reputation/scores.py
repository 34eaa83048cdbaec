"""Compute where every peer stands, and one digest over it all.

    V, W     = convictions and rejected claims, halved with age
    pen      = 0 for an equivocator, else 2^(-4 V)
    F        = flow from the anchors
    w        = typical flow of those who are no anchors
    score    = pen * F / (F + w/4)                whom to give work
    cred     = score * 2^(-W)                     whom to ask for a verdict, and for nothing else
    newcomer : F < w/20 and V < 1/5, or w = 0 and V < 1/5

Nodes that have the same evidence find the same digest, in whatever order they read it. Where records of the epoch
still come in, they do not have the same: scores are for epochs that have ended. Pure.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from dht.codec import encode
from dht.reputation.edges import Rows, credits_of, shares_of
from dht.reputation.evidence import Evidence, weights
from dht.reputation.fixed_point import BITS, MAX_WEIGHT, ONE, decay, decay_table
from dht.reputation.flow import Flow, typical, walk
from dht.reputation.rules import DEFAULT_SCORE_RULES, ScoreRules
from dht.reputation.successions import Estate, inherited, settle

DOMAIN = "efed/scores/1"
"""What a digest begins with; another rule would have another one."""


class Standing(NamedTuple):
    """Where one peer stands. Numbers are Q40."""

    score: int  # how far to trust it with work, 0 to 1
    flow: int  # F, the anchors' trust that comes to it
    penalty: int  # pen, what its convictions leave of it, 1: all
    credibility: int  # cred, its weight where committees are drawn
    convictions: int  # V
    rejections: int  # W
    is_newcomer: bool  # it has to prove itself before its work is delivered
    is_equivocator: bool  # it signed two things that contradict each other
    is_dead: bool  # it has named a successor


UNKNOWN = Standing(0, 0, ONE, 0, 0, 0, is_newcomer=True, is_equivocator=False, is_dead=False)
"""Of whom nothing is known."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Every peer's standing as of the end of one epoch."""

    epoch: int
    anchors: tuple[str, ...]  # whose trust it is, sorted
    typical_flow: int  # w, Q40
    standings: Mapping[str, Standing]  # of all who are named in what counts, sorted by peer id
    rules: ScoreRules
    credit: Rows  # by consumer and provider, units, Q40
    moved: Flow  # how the anchors' trust moved
    digest: bytes  # over all of it, 32 bytes

    @property
    def peers(self) -> tuple[str, ...]:
        """All who are named in what counts, sorted."""
        return tuple(self.standings)

    @property
    def has_flow(self) -> bool:
        """Say whether anybody but the anchors is trusted. Until then all are newcomers, and somebody has to begin."""
        return self.typical_flow > 0

    def standing(self, peer: str) -> Standing:
        """Give a peer's standing; that of a newcomer where nothing is known of it."""
        return self.standings.get(peer, UNKNOWN)

    def weight(self, peer: str) -> int:
        """Say how much of the work to give to a peer, beside what others of its blocks have here, Q40.

        0 for newcomers, whose work is not delivered yet, and for whom the score is too low. It is cut where half of the
        typical flow brings it, so that a ring whose trust runs in circles gets no more work than others.
        """
        standing, rules = self.standing(peer), self.rules
        if standing.is_newcomer or standing.score * rules.gate.denominator < ONE * rules.gate.numerator:
            return 0
        return min(standing.score, ONE * rules.full_weight.numerator // rules.full_weight.denominator)


def score(evidence: Evidence, anchors: Collection[str], epoch: int, rules: ScoreRules = DEFAULT_SCORE_RULES) -> Scores:
    """Compute the scores as of the end of ``epoch``; what is dated later does not count.

    Args:
        evidence: What is known, in any order.
        anchors: Peer ids whose trust it is; their successors take their places.
        epoch: The last one that counts.
        rules: The swarm's constants.
    """
    estates = settle(evidence.successions, epoch)
    known = inherited(evidence, estates)
    roots = {_anchor(anchor, estates.get(anchor)) for anchor in anchors}
    convicted = weights(
        known.convictions, epoch, decay_table(rules.evidence_epochs, rules.conviction_half_life_epochs), MAX_WEIGHT
    )
    rejected = weights(
        known.rejections, epoch, decay_table(rules.evidence_epochs, rules.claim_half_life_epochs), MAX_WEIGHT
    )
    penalties = {peer: decay(rules.conviction_exponent * weight, ONE) for peer, weight in convicted.items()}
    penalties |= dict.fromkeys(known.equivocators, 0)
    credit = credits_of(known, epoch, rules)
    moved = walk(shares_of(credit, penalties, rules), roots, rules)
    w = typical(flow for peer, flow in moved.total.items() if peer not in roots)
    named = {*roots, *credit, *convicted, *rejected, *known.equivocators}.union(*credit.values())
    marks = _Marks(penalties, convicted, rejected, known.equivocators, w, rules)
    standings = {peer: marks.standing(peer, moved.total.get(peer, 0)) for peer in named}
    standings |= dict.fromkeys(estates, UNKNOWN._replace(is_newcomer=False, is_dead=True))
    ordered = {peer: standings[peer] for peer in sorted(standings)}
    digest = _digest(epoch, tuple(sorted(roots)), w, ordered)
    return Scores(epoch, tuple(sorted(roots)), w, ordered, rules, credit, moved, digest)


def _anchor(anchor: str, estate: Estate | None) -> str:
    """Name who has an anchor's place: its heir; itself where nobody inherits, so that its share goes to the others."""
    return anchor if estate is None or estate.heir is None else estate.heir


@dataclass(frozen=True, slots=True)
class _Marks:
    """What decides about standings beside the flow."""

    penalties: Mapping[str, int]
    convicted: Mapping[str, int]
    rejected: Mapping[str, int]
    equivocators: Collection[str]
    typical_flow: int
    rules: ScoreRules

    def standing(self, peer: str, flow: int) -> Standing:
        """Put them together."""
        penalty, weight = self.penalties.get(peer, ONE), self.convicted.get(peer, 0)
        saturated = self._saturated(flow, penalty)
        return Standing(
            score=saturated,
            flow=flow,
            penalty=penalty,
            credibility=saturated * decay(self.rejected.get(peer, 0), ONE) >> BITS,
            convictions=weight,
            rejections=self.rejected.get(peer, 0),
            is_newcomer=self._is_newcomer(flow, weight) and peer not in self.equivocators,
            is_equivocator=peer in self.equivocators,
            is_dead=False,
        )

    def _saturated(self, flow: int, penalty: int) -> int:
        """Pen * F / (F + kappa * w)."""
        kappa = self.rules.saturation
        denominator = kappa.denominator * flow + kappa.numerator * self.typical_flow
        return penalty * kappa.denominator * flow // denominator if flow else 0

    def _is_newcomer(self, flow: int, weight: int) -> bool:
        few, little = self.rules.newcomer_convictions, self.rules.graduation
        is_small = flow * little.denominator < self.typical_flow * little.numerator or self.typical_flow == 0
        return is_small and weight * few.denominator < ONE * few.numerator


def _digest(epoch: int, anchors: tuple[str, ...], typical_flow: int, ordered: Mapping[str, Standing]) -> bytes:
    """Hash canonical values one behind the other: a heading with the numbers of both lists, then the lists."""
    return sha256(b"".join(_canonical(epoch, anchors, typical_flow, ordered))).digest()


def _canonical(
    epoch: int, anchors: tuple[str, ...], typical_flow: int, ordered: Mapping[str, Standing]
) -> Iterator[bytes]:
    yield encode([DOMAIN, epoch, len(anchors), len(ordered), typical_flow])
    yield from map(encode, anchors)
    for peer, standing in ordered.items():
        yield encode([peer, *standing])
