"""The constants: what a founder decides is taken by its name, and what makes no sense is refused."""

from fractions import Fraction

import pytest

from dht.parameters import SwarmParameters
from dht.reputation import DEFAULT_SCORE_RULES, ScoreRules

DECIDED = (
    "window_epochs", "evidence_epochs", "flow_half_life_epochs", "conviction_half_life_epochs",
    "audit_half_life_epochs",
)  # fmt: skip


def test_a_swarm_whose_founder_decided_nothing_has_the_default_rules():
    parameters = SwarmParameters(founder="", t=0, life_s=1, name="", private=False)
    assert ScoreRules.of_swarm(**{name: getattr(parameters, name) for name in DECIDED}) == DEFAULT_SCORE_RULES


def test_each_number_goes_to_its_place():
    rules = ScoreRules.of_swarm(**{name: number for number, name in enumerate(DECIDED, 1)})
    assert rules == ScoreRules(1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "changed",
    [{"window_epochs": 0}, {"hops": 0}, {"max_passes": -1}, {"edge_cap": Fraction(0)}, {"restart": Fraction(3, 2)},
     {"newcomer_convictions": Fraction(-1)}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(changed):
    with pytest.raises(ValueError, match=r"at (least|most) 1"):
        ScoreRules(**changed)
