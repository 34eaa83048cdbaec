"""What is recorded of a run: as evidence for ``dht.reputation``, and as sums for rules that fade by floats. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import chain, islice

from dht.reputation import DEFAULT_SCORE_RULES, Conviction, Evidence, OpenFail, Pass, Rejection, Work
from reputation_simulation.attacks import Behaviour
from reputation_simulation.settings import UNIT

WINDOW = DEFAULT_SCORE_RULES.window_epochs
FADE: float = 2 ** (-1 / DEFAULT_SCORE_RULES.flow_half_life_epochs)
"""What is left of a sum after an epoch, where a rule has no formula of its own for age."""


@dataclass(eq=False)
class Node:
    """An identity."""

    name: str
    range: int  # which blocks it holds
    joined: int  # epoch
    behaviour: Behaviour | None = None  # None: honest
    is_anchor: bool = False
    is_alive: bool = True

    @property
    def is_honest(self) -> bool:
        """Whether it does what the protocol says."""
        return self.behaviour is None


@dataclass
class Audited:
    """What audits of one provider have found, faded."""

    passes: float = 0.0
    fails: float = 0.0


@dataclass
class Book:
    """Everything that every rule may read. Liars write into it what they like about each other and about others."""

    epoch: int = 0
    works: deque[tuple[Work, ...]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    passes: deque[tuple[Pass, ...]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    convictions: list[Conviction] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    open_fails: set[OpenFail] = field(default_factory=set)  # of claims
    on_trial: set[tuple[str, str]] = field(default_factory=set)  # accuser and accused
    falsely: set[tuple[str, str]] = field(default_factory=set)  # the same, where a claim was rejected
    audited: defaultdict[str, Audited] = field(default_factory=lambda: defaultdict(Audited))
    volume: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    served: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    failed: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    failed_in: dict[tuple[str, str], int] = field(default_factory=dict)  # epoch of the newest failed audit
    _units: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    _passed: set[Pass] = field(default_factory=set)

    def work(self, consumer: Node, provider: Node, units: int = 1) -> None:
        """Both sign for work."""
        self._units[consumer.name, provider.name] += units

    def passed(self, auditor: Node, provider: Node) -> None:
        """An audit has found nothing."""
        self._passed.add(Pass(auditor.name, provider.name, self.epoch))
        self.audited[provider.name].passes += 1

    def fails(self, auditor: Node, provider: Node) -> None:
        """An audit has found a bad output, or an auditor says so."""
        self.audited[provider.name].fails += 1
        self.failed[auditor.name, provider.name] += 1
        self.failed_in[auditor.name, provider.name] = self.epoch

    def end_epoch(self) -> None:
        """Publish what the epoch has brought; let sums fade."""
        self.works.append(tuple(Work(*pair, self.epoch, units * UNIT) for pair, units in self._units.items()))
        self.passes.append(tuple(self._passed))
        for sums in (self.volume, self.served, self.failed):
            for key in sums:
                sums[key] *= FADE
        for audited in self.audited.values():
            audited.passes *= FADE
            audited.fails *= FADE
        for pair, units in self._units.items():
            self.volume[pair[1]] += units
            self.served[pair] += units
        self._units.clear()
        self._passed = set()
        self.epoch += 1

    def served_lately(self, num_epochs: int) -> set[str]:
        """Name who has worked in the epochs before this one."""
        return {work.provider for works in islice(reversed(self.works), num_epochs) for work in works}

    def evidence(self) -> Evidence:
        """Give all of it as the score takes it."""
        audits = {
            OpenFail(*pair)
            for pair, epoch in self.failed_in.items()
            if self.epoch - epoch < WINDOW and pair not in self.falsely
        }
        return Evidence(
            works=tuple(chain.from_iterable(self.works)),
            passes=tuple(chain.from_iterable(self.passes)),
            convictions=tuple(self.convictions),
            rejections=tuple(self.rejections),
            open_fails=tuple(self.open_fails | audits),
        )
