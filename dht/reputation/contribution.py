"""Say whose request is served first under load: who has given much for what it took.

    priority = 1 / (1 + e^(3 r - 6)),   r = consumed / (provided + 3 units)

A half at r = 2, where those begin who have no history: a new identity is no better than one that took much. Bitswap's
curve, on co-signed receipts. Pure.
"""

from dht.reputation.fixed_point import BITS, ONE, decay
from dht.reputation.rules import DEFAULT_SCORE_RULES

LOG2_E = 1_586_259_972_792
"""Binary logarithm of e, Q40, rounded down."""

CREDIT_UNITS = 3
"""What a peer has provided counts for so much more."""

STEEPNESS = 3
MIDDLE = 2
"""The curve falls from its middle, where it is a half, by so much."""


def priority(provided: int, consumed: int, has_history: bool, unit_work: int = DEFAULT_SCORE_RULES.unit_work) -> int:
    """Give a consumer's priority, 0 to 1 in Q40: it never rises with ``consumed``, nor falls with ``provided``.

    Args:
        provided: Work that it did for others, by co-signed receipts, block-tokens.
        consumed: Work that others did for it, block-tokens.
        has_history: Whether there is any receipt of it.
        unit_work: Block-tokens in a unit.
    """
    ratio = (consumed << BITS) // (provided + CREDIT_UNITS * unit_work) if has_history else MIDDLE * ONE
    beyond = STEEPNESS * (ratio - MIDDLE * ONE)
    if beyond < 0:
        return ONE * ONE // (ONE + decay(-beyond * LOG2_E >> BITS, ONE))
    odds = decay(beyond * LOG2_E >> BITS, ONE)
    return ONE * odds // (ONE + odds)
