"""Hold every constant of the score, with its meaning and unit. Peers that differ in one of them differ in all scores.

A swarm's founder decides windows and half-lives (``dht.parameters``); the others are the same in every swarm. Pure.
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class ScoreRules:
    """The constants of the score. Times are epochs; shares are exact fractions."""

    window_epochs: int = 56  # work and passes count while they are younger
    evidence_epochs: int = 360  # convictions and rejections count while they are younger
    flow_half_life_epochs: int = 28  # work and passes count half after so many
    conviction_half_life_epochs: int = 120  # a conviction counts half after so many
    claim_half_life_epochs: int = 56  # a rejected claim counts half against its accuser after so many

    unit_work: int = 4096  # block-tokens in one unit of credit
    max_work_units: int = 60  # work of one provider for one consumer earns no more credit, units
    pass_units: int = 5  # credit for a passed audit, units
    max_passes: int = 3  # passed audits of one provider by one auditor count for no more, after decay

    edge_cap: Fraction = Fraction(1, 10)  # most of its trust that a peer passes on to one other
    restart: Fraction = Fraction(3, 10)  # share of all trust that stays at each step; the rest is passed on
    hops: int = 4  # steps that trust is passed on, from the anchors
    saturation: Fraction = Fraction(1, 4)  # kappa: with this share of the typical flow the score is a half
    graduation: Fraction = Fraction(1, 20)  # a peer with less than this share of the typical flow is a newcomer

    gate: Fraction = Fraction(1, 8)  # with a lower score a peer gets no work
    full_weight: Fraction = Fraction(2, 3)  # with this score it gets as much as anyone

    conviction_exponent: int = 4  # one conviction halves the score so many times
    newcomer_convictions: Fraction = Fraction(1, 5)  # whoever has so many left is no newcomer but a convict

    def __post_init__(self) -> None:
        counts = (
            self.window_epochs, self.evidence_epochs, self.flow_half_life_epochs, self.conviction_half_life_epochs,
            self.claim_half_life_epochs, self.unit_work, self.max_work_units, self.hops,
        )  # fmt: skip
        shares = (self.edge_cap, self.restart, self.saturation, self.graduation, self.gate, self.full_weight)
        if min(counts) < 1 or min(self.pass_units, self.max_passes, self.conviction_exponent) < 0:
            raise ValueError("windows, half-lives, units and hops are at least 1, other counts not negative")
        if not all(0 < share <= 1 for share in shares) or self.newcomer_convictions < 0:
            raise ValueError("shares lie above 0 and are at most 1")

    @classmethod
    def of_swarm(
        cls,
        *,
        window_epochs: int,
        evidence_epochs: int,
        flow_half_life_epochs: int,
        conviction_half_life_epochs: int,
        audit_half_life_epochs: int,
    ) -> "ScoreRules":
        """Take what a swarm's parameters decide, by the names that they have there.

        Raises:
            ValueError: One of them is below 1.
        """
        return cls(
            window_epochs=window_epochs,
            evidence_epochs=evidence_epochs,
            flow_half_life_epochs=flow_half_life_epochs,
            conviction_half_life_epochs=conviction_half_life_epochs,
            claim_half_life_epochs=audit_half_life_epochs,
        )


DEFAULT_SCORE_RULES = ScoreRules()
"""Those of a swarm whose founder decided nothing."""
