"""Say what has to hold, and which of it does not, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reputation_simulation.figures import Figures
from reputation_simulation.overload import LIGHT, RIDERS

MAX_BAD = 0.001
"""Share of bad outputs in the last epochs, for these:"""
CLEAN = ("always", "partial", "stealth", "sybil", "whitewash", "mixed")
MAX_HONEST_FLAGGED = 0.015
MAX_SLANDERED = 0.01
MIN_NEWCOMERS = 0.85
MAX_INFLATION = 1.05
MAX_AFTER_BURST = 0.01
"""Share of bad outputs, ten epochs after a sleeper or an on-off attacker has begun."""
RECOVERY_EPOCHS = 10
BURSTS = {"onoff": 20, "sleeper": 40}
"""Epoch in which each begins."""
MIN_CONTRIBUTORS, MAX_FREE_RIDERS = 0.9, 0.2
"""Shares of demand, of those who ask for at most 0.6 of what they can do, and of those who do nothing."""


def missed(figures: Mapping[str, Figures]) -> Iterator[str]:
    """Yield a sentence for each demand that ours misses at 30 % liars; ``figures`` is by attack."""
    for attack, found in figures.items():
        if attack in CLEAN and found.bad > MAX_BAD:
            yield f"{attack}: {found.bad:.3%} of the last outputs were bad, at most {MAX_BAD:.1%} may be"
        most = MAX_SLANDERED if attack == "slander" else MAX_HONEST_FLAGGED
        if found.honest_flagged > most:
            yield f"{attack}: {found.honest_flagged:.2%} of the honest were flagged, at most {most:.1%} may be"
        if found.newcomers < MIN_NEWCOMERS:
            yield f"{attack}: newcomers got {found.newcomers:.2f} of the usual traffic, at least {MIN_NEWCOMERS} is due"
        if attack == "slander" and found.silenced < 1:
            yield f"slander: {found.silenced:.0%} of the slanderers were silenced, all have to be"
        if attack == "collude" and found.inflation > MAX_INFLATION:
            yield f"collude: the ring got {found.inflation:.3f} of its share, at most {MAX_INFLATION} is tolerated"
        if attack in BURSTS and len(found.bad_by_epoch) > BURSTS[attack] + RECOVERY_EPOCHS:
            later = max(found.bad_by_epoch[BURSTS[attack] + RECOVERY_EPOCHS :])
            if later >= MAX_AFTER_BURST:
                yield f"{attack}: {later:.2%} of an epoch's outputs were bad after it was found out, below 1 % is due"


def missed_under_load(served: Mapping[str, float]) -> Iterator[str]:
    """Yield a sentence for each demand that the ratio rule misses; ``served`` is by group of consumers."""
    light, riders = served[LIGHT.name], served[RIDERS.name]
    if light < MIN_CONTRIBUTORS:
        yield f"light contributors got {light:.2f} of what they asked, at least {MIN_CONTRIBUTORS} is due"
    if riders > MAX_FREE_RIDERS:
        yield f"free riders got {riders:.2f} of what they asked, at most {MAX_FREE_RIDERS} may be"
