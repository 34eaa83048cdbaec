"""Say whose request comes first where not all can be served: who gave much for what it took. Pure.

    r     = (consumed + 6 units) / (provided + 3 units)        a unit is 4096 block-tokens
    share = 1 / (1 + e^(3 r - 6))                              dht.reputation.priority

Everyone begins at r = 2, in the middle, as if it had taken six units: so a new name is no better than one that is in
debt, and its first token does not lift it to the top. Work for others lifts, work taken lowers.

What counts as provided is ``dht.reputation.contributions``'s to say: receipts that a ring of identities signs for each
other give no precedence once anybody is trusted.
"""

from dht.reputation import ONE, Contribution, ScoreRules, priority

NUM_LEVELS = 8
"""Levels from 0, who is served last, to one less than this."""

NEW_LEVEL = NUM_LEVELS // 2
"""Of whoever has no history."""


def level_of(contribution: Contribution, rules: ScoreRules) -> int:
    """Give a consumer's level.

    Args:
        contribution: What it gave and took, as far as it counts.
        rules: The swarm's constants.
    """
    share = priority(contribution.provided, contribution.consumed, rules.unit_work)
    return min(NUM_LEVELS - 1, share * NUM_LEVELS // ONE)
