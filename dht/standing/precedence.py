"""Say whose request comes first where not all can be served: who gave much for what it took. Pure.

    r     = (consumed + 6 units) / (provided + 3 units)        a unit is 4096 block-tokens
    share = 1 / (1 + e^(3 r - 6))                              dht.reputation.priority

Everyone begins at r = 2, in the middle, as if it had taken six units: so a new name is no better than one that is in
debt, and its first token does not lift it to the top. Work for others lifts, work taken lowers.

Where the swarm has flow, what a peer has provided counts only if it is established: receipts that a ring of identities
signs for each other bring no flow, and so no precedence.
"""

from dht.reputation import ONE, ScoreRules, priority
from dht.standing.ranks import Rank
from dht.standing.workbook import Contribution

NUM_LEVELS = 8
"""Levels from 0, who is served last, to one less than this."""

NEW_LEVEL = NUM_LEVELS // 2
"""Of whoever has no history."""


def level_of(contribution: Contribution, rank: Rank, rules: ScoreRules, *, has_flow: bool) -> int:
    """Give a consumer's level.

    Args:
        contribution: What it gave and took, by receipts.
        rank: Where it stands.
        rules: The swarm's constants.
        has_flow: Whether anybody in the swarm is trusted yet.
    """
    counts = rank is Rank.ESTABLISHED or (rank is Rank.NEWCOMER and not has_flow)
    provided = contribution.provided if counts else 0
    share = priority(provided, contribution.consumed, rules.unit_work)
    return min(NUM_LEVELS - 1, share * NUM_LEVELS // ONE)
