"""Judge claims by the rule of ``dht.judgement``: who denies, who is drawn, who votes what, who has a bond left.

Jurors are drawn by credibility. Honest ones find the truth but for an error; liars vote for their friends and against
everybody else, and deny for them where they are anchors. Whoever loses appeals, but for who is away, and for
whitewashers, who contest nothing. A claim is signed at a time of its epoch that is drawn; what holds when an epoch
ends counts in the next one. The course of each trial is in ``trials``.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from dht.judgement.judge import HOLDER_EPOCHS, MAX_REJECTIONS, MEMORY_EPOCHS
from dht.judgement.outcomes import State
from dht.judgement.proceedings import FEW_HOLDERS, LEVEL_1_SIZE, LEVEL_2_SIZE, MIN_JURORS, REACH
from dht.judgement.timeline import MAX_UNITS, UNITS_PER_EPOCH
from dht.judgement.votes import Decision, Tally, decide
from dht.reputation import Conviction, OpenFail, Rejection, Scores
from dht.verdict import Opinion
from reputation_simulation.book import Book, Node
from reputation_simulation.settings import Settings
from reputation_simulation.trials import Step, Trial, course, standing


@dataclass(frozen=True)
class Claim:
    """An accusation."""

    accuser: Node
    accused: Node
    is_true: bool  # the output was bad


@dataclass
class Case:
    """A claim with what comes of it."""

    claim: Claim
    epoch: int
    signed: int  # units since the beginning of the first epoch
    course: Sequence[Step]
    holds: Step

    @property
    def parties(self) -> tuple[str, str]:
        """Accuser and accused."""
        return self.claim.accuser.name, self.claim.accused.name

    @property
    def was_contested(self) -> bool:
        """Whether anybody has judged it."""
        return any(step.level for step in self.course)


@dataclass
class Found:
    """What follows from cases."""

    convictions: list[Conviction] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    open_fails: set[OpenFail] = field(default_factory=set)
    falsely: set[tuple[str, str]] = field(default_factory=set)

    def add(self, case: Case) -> None:
        """Count what holds of one."""
        accuser, accused = case.parties
        match case.holds.state:
            case State.UPHELD:
                self.convictions.append(Conviction(accused, case.epoch))
            case State.REJECTED:
                self.rejections.append(Rejection(accuser, case.epoch))
                self.falsely.add(case.parties)
        if case.holds.state is not State.REJECTED:
            self.open_fails.add(OpenFail(accuser, accused))


@dataclass(frozen=True)
class Bond:
    """What was staked to force the last level."""

    epoch: int
    settled: int  # units since the beginning of the first epoch
    is_lost: bool


class Session:
    """Those who judge in one epoch.

    Args:
        nodes: All, also those that have gone: they are drawn, and do not vote.
        served: Who has worked lately.
        scores: As of the start of the epoch.
    """

    def __init__(self, nodes: Iterable[Node], served: Collection[str], scores: Scores) -> None:
        credible: list[tuple[Node, int]] = []
        self._holders: Counter[int] = Counter()
        self._served = served
        self.anchors: list[Node] = []
        for node in nodes:
            self._holders[node.range] += node.name in served
            credibility = scores.standing(node.name).credibility
            if credibility > 0:
                credible.append((node, credibility))
            if node.name in scores.anchors:
                self.anchors.append(node)
        least = REACH * max((credibility for _, credibility in credible), default=0)
        self._heeded = [(node, credibility) for node, credibility in credible if credibility >= least]
        self._names = {node.name for node, _ in self._heeded}

    def num_holders(self, claim: Claim) -> int:
        """Count who has worked on the blocks lately."""
        return self._holders[claim.accused.range]

    def is_heeded(self, claim: Claim) -> bool:
        """Say whether silence proves the accuser right."""
        if claim.accuser in self.anchors:
            return True
        jurors = [node for node in self._heeded_holders(claim) if node not in (claim.accuser, claim.accused)]
        return claim.accuser.name in self._names and len(jurors) >= MIN_JURORS

    def _heeded_holders(self, claim: Claim) -> list[Node]:
        return [node for node, _ in self._heeded if node.range == claim.accused.range and node.name in self._served]

    def draw(self, claim: Claim, level: int, is_by_default: bool, rng: random.Random) -> list[Node]:
        """Draw a committee by credibility, as the rendezvous hash does; the last level is the anchors."""
        parties = (claim.accuser, claim.accused)
        if level == 3:
            return [node for node in self.anchors if node not in parties]
        holders = self._heeded_holders(claim)
        among = self._heeded
        if level == 1 or is_by_default:
            among = [each for each in among if each[0] in holders]
        size = LEVEL_2_SIZE if level == 2 else LEVEL_1_SIZE if len(holders) >= FEW_HOLDERS else FEW_HOLDERS
        waiting = [
            (-math.log(1 - rng.random()) / credibility, number)
            for number, (node, credibility) in enumerate(among)
            if node not in parties
        ]
        return [among[number][0] for _, number in sorted(waiting)[:size]]


@dataclass
class Courts:
    """All courts of a swarm, and what they have done."""

    settings: Settings
    rng: random.Random
    cases: list[Case] = field(default_factory=list)
    num_votes: int = 0
    num_anchor_appeals: int = 0
    _open: list[Case] = field(default_factory=list)
    _ended: Found = field(default_factory=Found)
    _of_accuser: defaultdict[str, list[Case]] = field(default_factory=lambda: defaultdict(list))
    _bonds: defaultdict[str, list[Bond]] = field(default_factory=lambda: defaultdict(list))

    def is_heard(self, accuser: Node, epoch: int, signed: int) -> bool:
        """Whether one's claims are looked at that are signed so many units after the beginning of the first epoch."""
        false = sum(
            last.state is State.REJECTED and case.signed + last.units <= signed and epoch - case.epoch <= MEMORY_EPOCHS
            for case in self._of_accuser[accuser.name]
            for last in case.course[-1:]
        )
        return false <= MAX_REJECTIONS

    def judge(self, claims: Sequence[Claim], book: Book, nodes: Sequence[Node], scores: Scores) -> None:
        """Open the trials of an epoch's claims; write into the book what holds at its end."""
        session = Session(nodes, book.served_lately(HOLDER_EPOCHS), scores)
        times = sorted(book.epoch * UNITS_PER_EPOCH + self.rng.randrange(UNITS_PER_EPOCH) for _ in claims)
        for claim, signed in zip(self.rng.sample(claims, len(claims)), times, strict=True):
            if self.is_heard(claim.accuser, book.epoch, signed):
                steps = self._course(claim, session, book.epoch, signed)
                case = Case(claim, book.epoch, signed, steps, steps[0])
                self.cases.append(case)
                self._open.append(case)
                self._of_accuser[claim.accuser.name].append(case)
        self._write(book)

    def reopen(self, book: Book, anchors: Sequence[Node]) -> None:
        """Let other anchors decide all that was contested: for a user who has replaced them.

        Committees were drawn by the old ones' trust, so they do not count either.
        """
        self._ended, self._open = Found(), self.cases.copy()
        for case in self.cases:
            if case.was_contested:
                found = decide(self._tally(case.claim, anchors, 3), 3)
                state = {Decision.UPHELD: State.UPHELD, Decision.REFUTED: State.REJECTED}.get(found, State.UNRESOLVED)
                case.course = (Step(0, state, 3, is_final=True),)
        self._bonds.clear()
        self._write(book)

    def _write(self, book: Book) -> None:
        """Let time come to the end of the epoch, and publish what holds then."""
        end = (book.epoch + 1) * UNITS_PER_EPOCH
        for case in self._open:
            case.holds = standing(case.course, end - case.signed)
            if case.holds.is_final:
                self._ended.add(case)
        self._open = [case for case in self._open if not case.holds.is_final]
        found = Found()
        for case in self._open:
            found.add(case)
        book.convictions = self._ended.convictions + found.convictions
        book.rejections = self._ended.rejections + found.rejections
        book.open_fails = self._ended.open_fails | found.open_fails
        book.falsely = self._ended.falsely | found.falsely
        book.on_trial = {case.parties for case in self._open}

    def _course(self, claim: Claim, session: Session, epoch: int, signed: int) -> tuple[Step, ...]:
        """Let one trial take place."""
        accused, accuser = claim.accused, claim.accuser
        is_away = {each.name: self._is_away(each) for each in (accused, accuser)}
        backed = ""

        def appeals(level: int, found: Decision) -> bool:
            nonlocal backed
            loser = accused if found is Decision.UPHELD else accuser
            if is_away[loser.name] or (level == 3 and not self._has_bond(loser, epoch, signed)):
                return False
            backed = loser.name if level == 3 else ""
            return True

        def vote(level: int, is_by_default: bool) -> Tally:
            self.num_anchor_appeals += level == 3
            return self._tally(claim, session.draw(claim, level, is_by_default, self.rng), level)

        is_denied = not is_away[accused.name] or self._is_defended(claim, session.anchors)
        steps = course(Trial(session.num_holders(claim), is_denied, session.is_heeded(claim), appeals, vote))
        if backed:
            lost = State.UPHELD if backed == accused.name else State.REJECTED
            self._bonds[backed].append(Bond(epoch, signed + MAX_UNITS, steps[-1].state is lost))
        return steps

    def _is_away(self, node: Node) -> bool:
        """Whether it says nothing in a trial; who takes new names does not care."""
        if node.behaviour is not None:
            return node.behaviour.rejoins
        return self.rng.random() < self.settings.away

    def _is_defended(self, claim: Claim, anchors: Sequence[Node]) -> bool:
        """Whether an anchor that has the weights denies for an accused that is silent."""
        able = [anchor for anchor in anchors if anchor not in (claim.accuser, claim.accused)]
        able = able[len(able) - min(len(able), self.settings.num_defenders) :]
        tally = self._tally(claim, able, 1)
        return tally.refuted > 0

    def _has_bond(self, node: Node, epoch: int, signed: int) -> bool:
        return not any(
            bond.settled > signed or (bond.is_lost and epoch - bond.epoch <= MEMORY_EPOCHS)
            for bond in self._bonds.get(node.name, ())
        )

    def _tally(self, claim: Claim, members: Sequence[Node], level: int) -> Tally:
        """Let a committee vote."""
        said = Counter(self._opinion(claim, member, level) for member in members)
        tally = Tally(len(members), said[Opinion.UPHELD], said[Opinion.REFUTED], said[Opinion.INCONCLUSIVE])
        self.num_votes += tally.num_valid
        return tally

    def _opinion(self, claim: Claim, voter: Node, level: int) -> Opinion | None:
        """Give what one says; None: it says nothing."""
        rng, settings = self.rng, self.settings
        if not voter.is_alive or (voter.is_honest and rng.random() < settings.away):
            return None
        if not voter.is_honest:
            return Opinion.UPHELD if claim.accused.is_honest else Opinion.REFUTED
        if level > 1 and rng.random() < settings.cannot_tell:
            return Opinion.INCONCLUSIVE
        return Opinion.UPHELD if claim.is_true ^ (rng.random() < settings.juror_error) else Opinion.REFUTED
