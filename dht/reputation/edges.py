"""Find what share of its trust each peer passes on to each other: from work done for it, and audits that it made.

    credit(c, p)  = min(60, work units of p for c, halved with age) + 5 * min(3, passes of p by c, halved with age)
    credit(c, p)  = 0 where c has an open fail against p
    share(c, p)   = pen(c) * min(credit(c, p) * pen(p) / sum over p of credit(c, p) * pen(p), 1/10)

What a consumer gains by signing is nothing: credit makes a row of shares, and rows are all of one size. The consumer's
own penalty stands outside, because inside it would cancel: a convict passes on as little as it is trusted. Pure.
"""

from collections import defaultdict
from collections.abc import Mapping

from dht.reputation.evidence import Evidence
from dht.reputation.fixed_point import BITS, ONE, decay_table
from dht.reputation.rules import ScoreRules

Rows = dict[str, dict[str, int]]
"""By who gives and who gets, Q40."""


def credits_of(evidence: Evidence, epoch: int, rules: ScoreRules) -> Rows:
    """Add up by consumer and provider what is left of work and passed audits, in units, Q40."""
    table = decay_table(rules.window_epochs, rules.flow_half_life_epochs)
    worked: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for consumer, provider, of_epoch, work in evidence.works:
        age = epoch - of_epoch
        if 0 <= age < rules.window_epochs and consumer != provider:
            worked[consumer][provider] += work * table[age]
    credit: Rows = {
        consumer: {
            provider: min(rules.max_work_units * ONE, total // rules.unit_work) for provider, total in row.items()
        }
        for consumer, row in worked.items()
    }
    for auditor, row in _passed(evidence, epoch, table).items():
        earned = credit.setdefault(auditor, {})
        for provider, total in row.items():
            earned[provider] = earned.get(provider, 0) + rules.pass_units * min(rules.max_passes * ONE, total)
    for accuser, accused in evidence.open_fails:
        if accused in credit.get(accuser, ()):
            credit[accuser][accused] = 0
    return credit


def _passed(evidence: Evidence, epoch: int, table: tuple[int, ...]) -> Rows:
    passed: Rows = {}
    for auditor, provider, of_epoch in set(evidence.passes):
        age = epoch - of_epoch
        if 0 <= age < len(table) and auditor != provider:
            row = passed.setdefault(auditor, {})
            row[provider] = row.get(provider, 0) + table[age]
    return passed


def shares_of(credit: Rows, penalties: Mapping[str, int], rules: ScoreRules) -> Rows:
    """Make shares of credits; each row adds up to 1 at most, Q40.

    Args:
        credit: By consumer and provider, units, Q40.
        penalties: What is left of a peer after convictions, Q40; who is not named is whole.
        rules: The constants.
    """
    most = ONE * rules.edge_cap.numerator // rules.edge_cap.denominator
    shares: Rows = {}
    for consumer, row in credit.items():
        penalty = penalties.get(consumer, ONE)
        lowered = {provider: earned * penalties.get(provider, ONE) >> BITS for provider, earned in row.items()}
        total = sum(lowered.values())
        if total and penalty:
            shares[consumer] = {
                provider: penalty * min(most, (earned << BITS) // total) >> BITS
                for provider, earned in lowered.items()
                if earned
            }
    return shares
