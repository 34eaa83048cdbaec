"""Who is to be trusted with work, computed by everybody from the same records to the same bits: audit-gated flow trust.

fixed_point   numbers, and halving with age          rules         every constant, with its unit
evidence      what counts                            successions   which identity inherits which
edges         who has reason to trust whom           flow          trust carried from the anchors
scores        standings, and their digest            explanation   why a peer stands where it does
contribution  whose request is served first under load
owners        which identities are one owner's, for that

Nothing here does I/O, reads a clock, draws at random or uses a float. docs/trust.md has the formula.
"""

from dht.reputation.contribution import Contribution, affiliates, contributions, priority
from dht.reputation.evidence import Affiliated, Conviction, Evidence, OpenFail, Pass, Rejection, Succeeded, Work
from dht.reputation.explanation import Explanation, Inflow, Weight, why
from dht.reputation.fixed_point import ONE, decay
from dht.reputation.rules import DEFAULT_SCORE_RULES, ScoreRules
from dht.reputation.scores import Scores, Standing, score

__all__ = [
    "DEFAULT_SCORE_RULES",
    "ONE",
    "Affiliated",
    "Contribution",
    "Conviction",
    "Evidence",
    "Explanation",
    "Inflow",
    "OpenFail",
    "Pass",
    "Rejection",
    "ScoreRules",
    "Scores",
    "Standing",
    "Succeeded",
    "Weight",
    "Work",
    "affiliates",
    "contributions",
    "decay",
    "priority",
    "score",
    "why",
]
