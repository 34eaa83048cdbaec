"""Say whose request is served first under load: who has given much for what it took.

    priority = 1 / (1 + e^(3 r - 6)),   r = (consumed + 6 units) / (provided + 3 units)

A half at r = 2, where everybody begins: a new identity stands where one stands that took twice what it may, and falls
with the first token that it takes. Bitswap's curve, on co-signed receipts. What was done for peers that nobody trusts
counts nothing, or else a free rider would sign for itself under another name; while nobody is trusted at all, receipts
are all there is, and everybody's count. What a convict has done counts as little as its score. Identities of one owner
have what all of them gave and took; work among them is nobody's merit, and nobody's debt. Pure.
"""

from collections import defaultdict
from typing import NamedTuple

from dht.reputation.evidence import Evidence
from dht.reputation.fixed_point import BITS, ONE, decay, decay_table
from dht.reputation.owners import owners_of
from dht.reputation.rules import DEFAULT_SCORE_RULES
from dht.reputation.scores import Scores
from dht.reputation.successions import inherited, settle

LOG2_E = 1_586_259_972_792
"""Binary logarithm of e, Q40, rounded down."""

PROVIDED_UNITS, CONSUMED_UNITS = 3, 6
"""What every peer is taken to have provided and consumed before its first receipt."""

STEEPNESS = 3
MIDDLE = 2
"""The curve falls from its middle, where it is a half, by so much."""


class Contribution(NamedTuple):
    """What receipts say of one peer and the others of its owner, block-tokens, halved with age."""

    provided: int  # for peers that are trusted, of each pair no more than counts for the score, less its penalty
    consumed: int  # from anybody


def contributions(scores: Scores, evidence: Evidence) -> dict[str, Contribution]:
    """Add up what each peer has given and taken.

    Args:
        scores: Computed from ``evidence``; they say whose word counts.
        evidence: The same as there.
    """
    rules, epoch = scores.rules, scores.epoch
    table = decay_table(rules.window_epochs, rules.flow_half_life_epochs)
    known = inherited(evidence, settle(evidence.successions, epoch))
    owners = owners_of(known.affiliations)
    pairs: defaultdict[tuple[str, str], int] = defaultdict(int)
    for consumer, provider, of_epoch, work in known.works:
        age = epoch - of_epoch
        if 0 <= age < rules.window_epochs and owners.get(consumer, consumer) != owners.get(provider, provider):
            pairs[consumer, provider] += work * table[age]
    provided: defaultdict[str, int] = defaultdict(int)
    consumed: defaultdict[str, int] = defaultdict(int)
    most = rules.max_work_units * rules.unit_work * ONE
    for (consumer, provider), total in pairs.items():
        consumed[owners.get(consumer, consumer)] += total
        if not scores.has_flow or consumer in scores.anchors or scores.weight(consumer):
            provided[owners.get(provider, provider)] += min(most, total) * scores.standing(provider).penalty >> BITS
    owned = {peer: owner for peer, owner in owners.items() if owner in provided or owner in consumed}
    return {
        peer: Contribution(provided[owner] >> BITS, consumed[owner] >> BITS)
        for peer, owner in ({peer: peer for peer in provided.keys() | consumed.keys()} | owned).items()
    }


def affiliates(peer: str, evidence: Evidence, epoch: int) -> tuple[str, ...]:
    """Name the others of a peer's owner, whose contributions are one with its own.

    Args:
        peer: Peer id.
        evidence: What is known.
        epoch: The last one that counts.
    """
    owners = owners_of(inherited(evidence, settle(evidence.successions, epoch)).affiliations)
    owner = owners.get(peer)
    return tuple(sorted(other for other, its in owners.items() if its == owner and other != peer))


def priority(provided: int, consumed: int, unit_work: int = DEFAULT_SCORE_RULES.unit_work) -> int:
    """Give a consumer's priority, 0 to 1 in Q40: it never rises with ``consumed``, nor falls with ``provided``.

    Args:
        provided: Work that it did for others, block-tokens; 0 where there is no receipt.
        consumed: Work that others did for it, block-tokens; 0 where there is no receipt.
        unit_work: Block-tokens in a unit.
    """
    ratio = ((consumed + CONSUMED_UNITS * unit_work) << BITS) // (provided + PROVIDED_UNITS * unit_work)
    beyond = STEEPNESS * (ratio - MIDDLE * ONE)
    if beyond < 0:
        return ONE * ONE // (ONE + decay(-beyond * LOG2_E >> BITS, ONE))
    odds = decay(beyond * LOG2_E >> BITS, ONE)
    return ONE * odds // (ONE + odds)
