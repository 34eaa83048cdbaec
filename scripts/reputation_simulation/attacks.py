"""What liars do. All who lie in one run know each other: they vote, vouch and appeal for each other. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SLANDER = 4
"""From this epoch on, when liars sit on committees too."""


@dataclass(frozen=True)
class Behaviour:
    """What one liar does."""

    name: str
    cheats: float = 0.0  # share of its outputs that are bad
    on_from: int = 0  # epoch from which on it cheats
    period: int = 0  # and then for ``on_for`` epochs of so many; 0: always
    on_for: int = 0
    slanders: bool = False  # makes as many false claims as it may
    vouches: bool = False  # signs receipts and passes for work that was never done, with its friends
    rejoins: bool = False  # takes a new identity when it is found out, and contests nothing

    def cheat_rate(self, epoch: int) -> float:
        """Give the share of bad outputs in an epoch."""
        if epoch < self.on_from:
            return 0.0
        return self.cheats if not self.period or (epoch - self.on_from) % self.period < self.on_for else 0.0


ALWAYS = Behaviour("always", cheats=1.0)
PARTIAL = Behaviour("partial", cheats=0.2)
STEALTH = Behaviour("stealth", cheats=0.05)
ON_OFF = Behaviour("onoff", cheats=1.0, on_from=20, period=20, on_for=5)
SYBIL = Behaviour("sybil", cheats=0.5, vouches=True)
SLANDER = Behaviour("slander", slanders=True)
WHITEWASH = Behaviour("whitewash", cheats=1.0, rejoins=True)
COLLUDE = Behaviour("collude", vouches=True)
SLEEPER = Behaviour("sleeper", cheats=1.0, on_from=40, vouches=True)

ATTACKS: dict[str, tuple[Behaviour, ...]] = {
    **{one.name: (one,) for one in (ALWAYS, PARTIAL, STEALTH, ON_OFF, SYBIL, SLANDER, WHITEWASH, COLLUDE, SLEEPER)},
    "mixed": (ALWAYS, PARTIAL, STEALTH, ON_OFF, SYBIL, SLANDER, WHITEWASH),
}
"""By name, what the liars do; several kinds in equal parts."""
