"""Judge claims as TRUST's rules have it: default judgement, a committee of holders, a network-wide one, the anchors.

Jurors are drawn by credibility. Honest ones find the truth but for an error; liars vote for their friends and against
everybody else. Whoever loses appeals, but for an honest accuser whose claim was an error: it measures again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from dht.judgement.proceedings import REACH
from dht.reputation import DEFAULT_SCORE_RULES, Conviction, OpenFail, Rejection, Scores
from reputation_simulation.book import Book, Node
from reputation_simulation.settings import Settings

HOLDERS, NETWORK = 7, 15
"""Sizes of the committees of the first and the second level."""

MIN_HOLDERS = 3
"""A smaller committee decides nothing."""


@dataclass(frozen=True)
class Claim:
    """An accusation."""

    accuser: Node
    accused: Node
    is_true: bool  # the output was bad


@dataclass(frozen=True)
class Judged:
    """A claim with its outcome."""

    claim: Claim
    epoch: int
    upheld: bool
    level: int  # that decided it; 0: nobody contested it


@dataclass
class Courts:
    """All courts of a swarm, and what they have done."""

    settings: Settings
    rng: random.Random
    judged: list[Judged] = field(default_factory=list)
    num_claims: int = 0
    num_votes: int = 0
    num_anchor_appeals: int = 0
    _spent: set[str] = field(default_factory=set)
    """Who has lost its last bond."""

    def may_accuse(self, book: Book, accuser: Node) -> bool:
        """Whether its claims are heard."""
        recent = sum(
            one.accuser == accuser.name and book.epoch - one.epoch < DEFAULT_SCORE_RULES.claim_half_life_epochs
            for one in book.rejections
        )
        return recent <= self.settings.max_rejections

    def judge(self, claims: Sequence[Claim], book: Book, nodes: Sequence[Node], scores: Scores) -> None:
        """Decide an epoch's claims and write the outcomes into the book."""
        jurors = self._heeded([node for node in nodes if node.is_alive], scores)
        anchors = [node for node in nodes if node.name in scores.anchors]
        for claim in claims:
            self.num_claims += 1
            upheld, level = self._decide(claim, jurors, anchors, scores)
            self.judged.append(Judged(claim, book.epoch, upheld, level))
        self._write(book)

    def reopen(self, book: Book, anchors: Sequence[Node]) -> None:
        """Let other anchors decide all that was contested: for a user who has replaced them.

        Committees were drawn by the old ones' trust, so they do not count either.
        """
        self.judged = [
            Judged(one.claim, one.epoch, self._share(one.claim, anchors) > 0.5, 3) if one.level else one
            for one in self.judged
        ]
        self._spent.clear()
        self._write(book)

    def _write(self, book: Book) -> None:
        book.convictions = [Conviction(one.claim.accused.name, one.epoch) for one in self.judged if one.upheld]
        book.rejections = [Rejection(one.claim.accuser.name, one.epoch) for one in self.judged if not one.upheld]
        upheld = (one.claim for one in self.judged if one.upheld)
        book.open_fails = {OpenFail(claim.accuser.name, claim.accused.name) for claim in upheld}

    def _decide(
        self, claim: Claim, jurors: Sequence[Node], anchors: Sequence[Node], scores: Scores
    ) -> tuple[bool, int]:
        behaviour = claim.accused.behaviour
        if behaviour is not None and behaviour.rejoins:
            return True, 0
        holders = self._draw(claim, [node for node in jurors if node.range == claim.accused.range], HOLDERS, scores)
        if len(holders) >= MIN_HOLDERS:
            share = self._share(claim, holders)
            if not 1 / 3 < share < 2 / 3 and not self._appeals(claim, share > 0.5):
                return share > 0.5, 1
        drawn = self._draw(claim, jurors, NETWORK, scores)
        if len(drawn) >= MIN_HOLDERS:
            share = self._share(claim, drawn)
            is_close = 1 / 3 <= share <= 2 / 3
            if not is_close and not self._posts_bond(claim, share > 0.5):
                return share > 0.5, 2
        upheld = self._share(claim, anchors) > 0.5
        self.num_anchor_appeals += 1
        self._spent.add((claim.accuser if not upheld else claim.accused).name)
        return upheld, 3

    @staticmethod
    def _heeded(nodes: Sequence[Node], scores: Scores) -> list[Node]:
        """Name those whose credibility is near enough to the highest."""
        highest = max((scores.standing(node.name).credibility for node in nodes), default=0)
        return [node for node in nodes if scores.standing(node.name).credibility >= REACH * highest > 0]

    def _draw(self, claim: Claim, nodes: Sequence[Node], size: int, scores: Scores) -> list[Node]:
        """Draw by credibility, as the rendezvous hash does."""
        parties = (claim.accuser, claim.accused)
        keyed = [
            (-math.log(1 - self.rng.random()) / scores.standing(node.name).credibility, number)
            for number, node in enumerate(nodes)
            if node not in parties
        ]
        return [nodes[number] for _, number in sorted(keyed)[:size]]

    def _share(self, claim: Claim, voters: Sequence[Node]) -> float:
        """Let them vote, and give the share that upholds."""
        votes = [self._vote(claim, voter) for voter in voters if voter not in (claim.accuser, claim.accused)]
        self.num_votes += len(votes)
        return sum(votes) / len(votes) if votes else 0.0

    def _vote(self, claim: Claim, voter: Node) -> bool:
        if not voter.is_honest:
            return claim.accused.is_honest
        return claim.is_true ^ (self.rng.random() < self.settings.juror_error)

    @staticmethod
    def _appeals(claim: Claim, upheld: bool) -> bool:
        """Whether the loser appeals."""
        if upheld:
            return True
        return not claim.accuser.is_honest or claim.is_true

    def _posts_bond(self, claim: Claim, upheld: bool) -> bool:
        loser = claim.accused if upheld else claim.accuser
        return self._appeals(claim, upheld) and loser.name not in self._spent
