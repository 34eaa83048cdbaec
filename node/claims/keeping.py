"""Take part in the trials of a swarm for as long as a node runs: watch, judge, sign, accuse, hand evidence out.

    ScoreBoard ──refresh──> records, outcomes ──> Desk           every quarter of a trial's unit
        └── sightings ──> Notebook                └─> Clerk      of an anchor; so what comes late is known to

Scores on that board follow from what this node has seen come, and before that from what most anchors have signed. What
is past its time is forgotten by this node's clock, but never ahead of what others have signed: so a clock that jumps
loses nothing. Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from dht.audit import Audit
from dht.claim import CLAIM_EPOCHS, Claim
from dht.contest import Contest
from dht.hardening.duty import take_turn
from dht.identity import Identity
from dht.judgement.docket import open_cases
from dht.judgement.outcomes import Outcomes, Ruling
from dht.rules import Rules
from dht.standing.board import ScoreBoard, Standings
from dht.standing.ranks import Rank, rank_of
from dht.standing.sightings import Sightings, half_unit_s
from dht.swarm import Swarm
from dht.verdict import Verdict
from node.claims.accuser import Accuser
from node.claims.clerk import Clerk
from node.claims.desk import Desk
from node.claims.findings import Examine
from node.claims.notebook import NOTEBOOK, Notebook
from node.claims.shelf import Shelf
from node.claims.stream import EVIDENCE_PROTOCOL, fetch_evidence
from node.handout import Handout

logger = logging.getLogger(__name__)

SHELF = "evidence"
"""Beside the notebook: what it has claimed with."""
_OUT = frozenset({Rank.CONVICTED, Rank.EQUIVOCATOR, Rank.ENDED})
FIRST_S = 10.0
"""After its start a node has other things to do for so long, s."""
REST = 4
"""So many times as long as a turn has taken, nothing is done after it: a node has its own work."""


class ClaimsKeeping:
    """An async context manager; inside it, ``run`` is this node's duty, and ``accuser`` takes what it has found false.

    Args:
        home: the node's state directory.
        swarm: entered.
        identity: who signs.
        examine: runs evidence again.
        bootstraps: peer ids whose snapshots are asked for first.
        anchors: whose trust counts for this node; none: those of the swarm.
        clock: unix time, s.
    """

    def __init__(
        self,
        home: Path,
        swarm: Swarm,
        identity: Identity,
        examine: Examine,
        *,
        bootstraps: Sequence[str] = (),
        anchors: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._swarm = swarm
        self._identity = identity
        self._examine = examine
        self._bootstraps = bootstraps
        self._anchors = anchors
        self._clock = clock
        self._kept: dict[bytes, Ruling] = {}
        """Rulings that stand in the notebook; the board looks at the same."""
        self._judges: dict[bytes, frozenset[str]] = {}
        """By evidence of this node: who is to judge a claim with it, and its accused."""
        self._tidied = 0
        """Epoch in which the notebook was tidied last."""
        self.board: ScoreBoard
        """Set inside the context, as what follows is."""
        self.accuser: Accuser
        self.desk: Desk

    async def __aenter__(self) -> Self:
        self._notebook = await asyncio.to_thread(Notebook.open, self._home / NOTEBOOK)
        self._sightings = Sightings(await asyncio.to_thread(self._notebook.sightings))
        self._shelf = Shelf(self._home / SHELF)
        await asyncio.to_thread(self._shelf.tidy, 0)
        self.board = ScoreBoard(
            self._swarm,
            self._bootstraps,
            anchors=self._anchors,
            clock=self._clock,
            sightings=self._sightings,
            kept=self._remember,
        )
        self._clerk = Clerk(self._swarm, self._identity, self._notebook)
        self.accuser = Accuser(self._swarm, self._identity, self._shelf, self._notebook, self._clock)
        self.desk = Desk(
            self._swarm,
            self._identity,
            self._notebook,
            lambda claim: fetch_evidence(self._swarm, claim),
            self._examine,
            clock=self._clock,
            draw=secrets.token_bytes,
        )
        handout = Handout(EVIDENCE_PROTOCOL, self._shelf.get, first=lambda name: self._judges.get(name, frozenset()))
        await handout.start(self._swarm)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.desk.close()
        await asyncio.to_thread(self._notebook.close)

    async def run(self) -> None:
        """Take part until our p2pd has ended."""
        rules = await self._swarm.wait_for_rules()
        since = rules.epoch_of(self._clock()) - CLAIM_EPOCHS
        if not await take_turn(self.accuser.publish_again(rules, since), "publishing claims"):
            return
        pause_s = min(FIRST_S, half_unit_s(rules) / 2)
        while True:
            await asyncio.sleep(pause_s)
            began_s = time.monotonic()
            if not await take_turn(self.turn(rules), "attending to claims"):
                return
            pause_s = max(half_unit_s(rules) / 2, REST * (time.monotonic() - began_s))

    async def turn(self, rules: Rules) -> Standings:
        """Read what has come, and do what is due.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        known = await self.board.refresh()
        present = rules.epoch_of(self._clock())
        shown = min(present, newest_of_others(known, self._identity.peer_id))
        self._sightings.forget_before(shown - rules.window_epochs)
        try:
            await asyncio.to_thread(self._note, known, shown, rules)
        except OSError as error:  # A full disk must not keep this node from denying what it is accused of.
            logger.warning("what was seen of claims is not kept: %s", error)
        proofs = known.proofs
        cases = open_cases(proofs.claims, proofs.contests, proofs.verdicts)
        self._judges = judges_of(self._identity.peer_id, proofs.claims, known.outcomes)
        await self.desk.attend(cases, known.outcomes, rules)
        if not self._anchors and self._identity.peer_id in self.board.anchors:  # By others' trust it says nothing.
            try:
                await self._clerk.attend(known, self._sightings, rules, self._clock())
            except OSError as error:
                logger.warning("what was found of claims is not signed: %s", error)
        await self.accuser.publish_again(rules, present - 1, {claim.hash for claim in proofs.claims})
        established = {peer for peer in known.scores.peers if rank_of(known.scores, peer) is Rank.ESTABLISHED}
        await self.accuser.claim(rules, self._spared(known), proofs.claims, established)
        return known

    def _spared(self, known: Standings) -> set[str]:
        """Name those against whom a claim of this node is open, and those who get no work any more."""
        own = (ruling for ruling in known.outcomes.rulings if ruling.accuser == self._identity.peer_id)
        on_trial = {ruling.accused for ruling in own if not ruling.is_final}
        return on_trial | {peer for peer in known.scores.peers if rank_of(known.scores, peer) in _OUT}

    def _remember(self, anchors: tuple[str, ...]) -> dict[bytes, Ruling]:
        """Return what stood for an earlier process by these anchors; in a thread."""
        self._kept = self._notebook.rulings(anchors)
        return self._kept

    def _note(self, known: Standings, shown: int, rules: Rules) -> None:
        """Put on the disk what must not be forgotten, and drop what may be; in a thread."""
        self._notebook.note_sightings(self._sightings.take_new())
        new = [ruling for claim, ruling in known.settled.items() if claim not in self._kept]
        self._notebook.keep_rulings(new, self.board.anchors)
        self._kept |= {ruling.claim: ruling for ruling in new}
        if shown > self._tidied:
            self._tidied = shown
            self._forget(shown - rules.window_epochs, shown - rules.evidence_epochs)
            self._shelf.tidy(rules.start_of(shown))

    def _forget(self, oldest: int, oldest_ruling: int) -> None:
        self._notebook.forget_before(oldest)
        self._notebook.forget_rulings_before(oldest_ruling)
        for claim in [claim for claim, ruling in self._kept.items() if ruling.epoch < oldest_ruling]:
            del self._kept[claim]


def newest_of_others(known: Standings, peer: str) -> int:
    """Name the newest epoch of which somebody else than ``peer`` has signed something; 0: nothing is known."""
    proofs = known.proofs
    signed: tuple[Audit | Claim | Contest | Verdict, ...] = (
        *proofs.audits, *proofs.claims, *proofs.contests, *proofs.verdicts
    )  # fmt: skip
    others = (record.epoch for record in signed if peer not in record.authors)
    return max(itertools.chain(others, (work.epoch for work in known.evidence.works)), default=0)


def judges_of(accuser: str, claims: Iterable[Claim], outcomes: Outcomes) -> dict[bytes, frozenset[str]]:
    """Name by evidence who must have it while a claim of ``accuser`` is open: its accused, anchors, committees."""
    evidence = {claim.hash: claim.evidence for claim in claims if claim.accuser == accuser}
    return {
        evidence[ruling.claim]: frozenset((ruling.accused, *ruling.defenders)).union(*ruling.committees)
        for ruling in outcomes.rulings
        if ruling.claim in evidence and not ruling.is_final
    }
