"""Keep scores fresh while a node runs: read what has come, compute beside the event loop, tell who wants to know.

    DHT ──work_reader──> workbook ─┐
    DHT ──proof_reader─> proofs ───┴─ gathering ─> evidence ─ dht.reputation ─> scores ─> listener

The scores of a board are this node's view of the present, by the anchors that its user trusts; the digest on which
nodes agree is ``snapshot_scores``'. Whatever a refresh fails of, the next one is tried; until the first has come
nothing is known, and nobody is treated worse for it. It runs on the event loop, computation in a thread.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dht.hardening.duty import take_turn
from dht.judgement.docket import FirstSeen
from dht.judgement.outcomes import Outcomes
from dht.parameters import SwarmParameters
from dht.receipts.checking import SignatureChecker
from dht.receipts.publisher import period_s
from dht.reputation import (
    DEFAULT_SCORE_RULES,
    Contribution,
    Evidence,
    ScoreRules,
    Scores,
    contributions,
    score,
)
from dht.rules import Rules
from dht.standing.gathering import evidence_of
from dht.standing.hearing import NO_OUTCOMES, NOTHING_SEEN, NOTHING_SETTLED, Settled, hear
from dht.standing.proof_reader import ProofReader
from dht.standing.proofs import Judged, Proofs
from dht.standing.sightings import Sightings, half_unit_s
from dht.standing.work_reader import WorkReader
from dht.standing.workbook import Workbook
from dht.swarm import Swarm

MIN_PERIOD_S = 5.0
"""Two refreshes are never closer, however short epochs are: one costs about a tenth of a second in a swarm of six."""


@dataclass(frozen=True, slots=True)
class Standings:
    """What a board knows at one moment."""

    scores: Scores
    evidence: Evidence  # what the scores were computed from
    proofs: Proofs  # the records behind it, besides receipts
    judged: Judged  # what has become of the claims among these
    settled: Settled  # rulings that this node found final, for the next time
    contributions: Mapping[str, Contribution]  # by peer: what it gave and took that counts where not all can be served
    outcomes: Outcomes = NO_OUTCOMES  # what follows from the claims, ruling by ruling
    ruled: Settled = field(default_factory=dict)  # what most anchors have signed: it stands before what this node found


class ScoreBoard:
    """Scores of a swarm as one node sees them; ``run`` keeps them fresh."""

    def __init__(
        self,
        swarm: Swarm,
        bootstraps: Sequence[str] = (),
        *,
        anchors: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        sightings: Sightings | None = None,
        kept: Callable[[tuple[str, ...]], Settled] | None = None,
    ) -> None:
        """Describe the board; nothing is read yet.

        Args:
            swarm: Where; entered before anything is read.
            bootstraps: Peer ids whose snapshots are asked for first.
            anchors: Peer ids whose trust counts for this node; none: those that the swarm's founder named.
            clock: Unix seconds.
            rng: Draws what snapshots are compared at; None: the system's.
            sightings: Remembers when what is about claims came; None: signed times are believed.
            kept: Gives, in a thread and once, the rulings that stand for this node, by the anchors that count: they are
                known when the swarm's parameters are. What is added to these is looked at, too.
        """
        self._swarm = swarm
        self._anchors = tuple(anchors)
        self._clock = clock
        self._works = WorkReader(swarm, bootstraps, rng or random.SystemRandom())
        self._proofs = ProofReader(swarm)
        self._sightings = sightings
        self._kept = kept
        self._remembered: Settled | None = None
        self.standings: Standings | None = None
        """What is known; None: nothing yet."""
        self.on_refreshed: Callable[[Standings], None] = _ignore
        """Called in the event loop after every refresh."""

    @property
    def anchors(self) -> tuple[str, ...]:
        """Whose trust counts."""
        return self._anchors or anchors_of(self._swarm.parameters)

    async def run(self) -> None:
        """Refresh every 36th of an epoch, by the monotonic clock; returns when our p2pd has ended."""
        rules = await self._swarm.wait_for_rules()
        while True:
            if not await take_turn(self.refresh(), "computing scores"):
                return
            await asyncio.sleep(max(MIN_PERIOD_S, period_s(rules)))

    async def refresh(self) -> Standings:
        """Read what has come, and compute the scores of the present.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        rules = await self._swarm.wait_for_rules()
        present = rules.epoch_of(self._clock())
        window = range(max(0, present + 1 - rules.window_epochs), present + 1)
        began_s = self._clock()
        async with SignatureChecker() as checker:
            await self._works.read(window, checker)
            peers = self._works.peers | set(self.anchors)
            is_anchor = self._sightings is not None and self._swarm.peer_id in self.anchors
            proofs = await self._proofs.read(
                peers, self.anchors, window, rules.evidence_epochs, checker, is_anchor=is_anchor
            )
        seen = self._look(proofs, began_s, rules)
        score_rules = score_rules_of(self._swarm.parameters, rules)
        terms = Terms(self.anchors, rules, score_rules)
        settled = await self._settled_before()
        now_s = self._clock()
        found = await asyncio.to_thread(
            standings_of, self._works.book.copy(), proofs, terms, present, now_s, settled, seen
        )
        self.standings = replace(found, settled=self._confirmed(found, settled))
        self.on_refreshed(self.standings)
        return self.standings

    async def _settled_before(self) -> Settled:
        if self._kept is not None and self._remembered is None:
            self._remembered = await asyncio.to_thread(self._kept, self.anchors)
        return {**(self._remembered or {}), **(self.standings.settled if self.standings is not None else {})}

    def _confirmed(self, found: Standings, settled: Settled) -> Settled:
        """Keep of what is final now what the last refresh found as well: one may not have read everything."""
        before = self.standings.outcomes.settled if self.standings is not None else {}
        return {
            claim: ruling
            for claim, ruling in found.settled.items()
            if claim in settled or (claim in before and before[claim].state is ruling.state)
        }

    def _look(self, proofs: Proofs, began_s: float, rules: Rules) -> FirstSeen:
        if self._sightings is None:
            return NOTHING_SEEN
        known = self.standings.scores.standings if self.standings is not None else {}
        heeded = {peer for peer, standing in known.items() if standing.credibility}
        self._sightings.look(
            self._proofs.asked, proofs, began_s, half_unit_s(rules), anchors=self.anchors, heeded=heeded
        )
        return self._sightings.first_seen_s


class Terms(NamedTuple):
    """What scores depend on besides records."""

    anchors: tuple[str, ...]  # whose trust it is
    rules: Rules  # of the swarm
    score_rules: ScoreRules


def standings_of(
    book: Workbook,
    proofs: Proofs,
    terms: Terms,
    epoch: int,
    now_s: float,
    settled: Settled = NOTHING_SETTLED,
    first_seen_s: FirstSeen = NOTHING_SEEN,
) -> Standings:
    """Compute what follows from records: pure, and seconds where there are many.

    Args:
        book: What receipts add up to.
        proofs: All other records.
        terms: What else it depends on.
        epoch: The last one that counts.
        now_s: By when claims are judged, unix seconds.
        settled: Rulings that stand already.
        first_seen_s: What this node has seen come.
    """
    heard = hear(book, proofs, terms.anchors, terms.rules, terms.score_rules, now_s, settled, first_seen_s)
    evidence = evidence_of(book, proofs, heard.judged, epoch)
    scores = score(evidence, terms.anchors, epoch, terms.score_rules)
    return Standings(
        scores,
        evidence,
        proofs,
        heard.judged,
        heard.settled,
        contributions(scores, evidence),
        heard.outcomes,
        heard.ruled,
    )


def anchors_of(parameters: SwarmParameters | None) -> tuple[str, ...]:
    """Name the anchors of a swarm; none where it has no parameters."""
    return parameters.anchors if parameters is not None else ()


def score_rules_of(parameters: SwarmParameters | None, rules: Rules) -> ScoreRules:
    """Give the constants of a swarm's scores."""
    if parameters is None:
        return DEFAULT_SCORE_RULES
    return ScoreRules.of_swarm(
        window_epochs=rules.window_epochs,
        evidence_epochs=rules.evidence_epochs,
        flow_half_life_epochs=parameters.flow_half_life_epochs,
        conviction_half_life_epochs=parameters.conviction_half_life_epochs,
        audit_half_life_epochs=parameters.audit_half_life_epochs,
    )


def _ignore(_: Standings) -> None:
    """Tell nobody."""
