"""Do what is due about claims: deny, appeal, commit, open. Whether work was right is for an examiner to say.

    outcomes ──> duties ──┬── open          from the notebook
                          ├── commit        from the notebook, or with a finding: first written down, then published
                          ├── deny          at once: silence convicts, and whoever knows of no guilt is innocent;
          │                 an anchor, for others: if it finds their work right, or the evidence false
                          ├── appeal        if it finds otherwise than what stands
                          └── no finding? ──> evidence fetched, verified, run again: one at a time, beside all this;
                              what cannot be had is asked for again, until time is short

Evidence that does not hold is refuted without being run. Runs in the event loop; examinations in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from dht.claim import Claim
from dht.contest import Contest
from dht.errors import DaemonDied, DhtError
from dht.identity import Identity
from dht.judgement.docket import Case
from dht.judgement.duties import Duty, duties
from dht.judgement.outcomes import Outcomes
from dht.judgement.timeline import Act, Timeline, phase_of
from dht.records import Envelope, Record, place, seal
from dht.rules import Rules
from dht.swarm import Swarm
from dht.verdict import SALT_BYTES, Opinion, Verdict, commit, reveal
from node.check.evidence import unpack_and_verify
from node.check.patience import until_cancelled
from node.claims.findings import Examine, Finding, cannot_tell
from node.claims.notebook import Ballot, Notebook
from node.errors import FalseEvidence

logger = logging.getLogger(__name__)

Fetch: TypeAlias = Callable[[Claim], Awaitable[bytes]]
"""Has the evidence of a claim; raises as ``fetch_evidence`` does."""

MAX_FINDINGS = 256
"""That are remembered; what was signed stands in the notebook."""
MIN_LEFT = 0.5
"""Units of a trial before the end of the time for appeals in which whoever has no finding yet does without."""


class Desk:
    """One node's part in trials. Closed by ``close``.

    Args:
        swarm: entered.
        identity: who signs.
        notebook: keeps votes.
        fetch: has evidence.
        examine: runs it again.
        clock: unix time, s.
        draw: returns so many random bytes.
    """

    def __init__(
        self,
        swarm: Swarm,
        identity: Identity,
        notebook: Notebook,
        fetch: Fetch,
        examine: Examine,
        *,
        clock: Callable[[], float],
        draw: Callable[[int], bytes],
    ) -> None:
        self._swarm = swarm
        self._identity = identity
        self._notebook = notebook
        self._fetch = fetch
        self._examine = examine
        self._clock = clock
        self._draw = draw
        self._findings: OrderedDict[bytes, Finding] = OrderedDict()
        self._missed: OrderedDict[bytes, Finding] = OrderedDict()
        """Of claims whose evidence could not be had yet, the one that was asked for longest ago first."""
        self._waiting: list[tuple[Duty, Claim]] = []
        """What is to be examined, and what for, the most urgent first."""
        self._examining: asyncio.Task[None] | None = None

    def finding(self, claim: bytes) -> Finding | None:
        """Return what this node found of a claim, by its hash; None: nothing yet."""
        return self._findings.get(claim)

    def reconsider(self) -> None:
        """Forget what could not be told: this node can tell more than before. What it has signed stands."""
        for claim in [claim for claim, found in self._findings.items() if found.opinion is Opinion.INCONCLUSIVE]:
            del self._findings[claim]

    async def attend(self, cases: Sequence[Case], outcomes: Outcomes, rules: Rules) -> None:
        """Sign what is due and can be signed; begin to find out what else must be known, and to sign what follows.

        Args:
            cases: as ``open_cases`` orders them.
            outcomes: what ``judge`` says of them just now.
            rules: of the swarm.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        by_hash = {case.hash: case.claim for case in cases}
        due = duties(self._identity.peer_id, cases, outcomes, rules, self._clock())
        for duty in due:
            if duty.until_s > self._clock():
                await self._try(duty, by_hash[duty.claim], outcomes, rules)
        await self._examine_what_is_due(due, by_hash, outcomes, rules)

    async def close(self) -> None:
        """Give up the examinations that are under way; a thread that computes ends where it looks next."""
        if self._examining is not None:
            self._examining.cancel()
            await asyncio.gather(self._examining, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until the examinations that are under way have ended."""
        if self._examining is not None:
            await self._examining

    async def _try(self, duty: Duty, claim: Claim, outcomes: Outcomes, rules: Rules) -> None:
        """Do one thing; what fails is due again at the next turn, and keeps nothing else from being done."""
        try:
            await self._do(duty, claim, outcomes, rules)
        except DaemonDied:
            raise
        except (DhtError, OSError) as error:
            logger.warning("what is due about the claim %s has failed: %s", claim.hash.hex()[:16], error)

    async def _do(self, duty: Duty, claim: Claim, outcomes: Outcomes, rules: Rules) -> None:
        match duty.act:
            case Act.REVEAL:
                await self._open(duty, claim, rules)
            case Act.COMMIT:
                await self._commit(duty, claim, rules)
            case Act.CONTEST | Act.APPEAL:
                if self._objects(duty, claim, outcomes, rules):
                    contester, t = self._identity.peer_id, int(self._clock())
                    contest = Contest(contester, claim.epoch, claim.hash, claim.accuser, duty.level, t)
                    logger.info("level %d is asked to judge the claim %s", duty.level, claim.hash.hex()[:16])
                    await self._publish(contest, rules)

    def _objects(self, duty: Duty, claim: Claim, outcomes: Outcomes, rules: Rules) -> bool:
        """Say whether this node denies a claim, or appeals against what stands, now.

        Claims against it are denied before anything is examined: a node that is slow must not be convicted for that.
        """
        if claim.accuser == self._identity.peer_id:
            return True  # It has found the work false itself, before it made the claim.
        found = self._findings.get(claim.hash)
        if duty.act is Act.CONTEST and claim.accused != self._identity.peer_id:
            return found is not None and found.opinion is Opinion.REFUTED
        if found is not None:
            return found.opinion is not Opinion.UPHELD
        if duty.act is Act.CONTEST or claim.hash in self._missed:
            return True  # Who knows of no guilt is innocent.
        return self._is_late(duty, claim, rules)

    def _is_late(self, duty: Duty, claim: Claim, rules: Rules) -> bool:
        return duty.until_s - self._clock() < MIN_LEFT * Timeline.of(claim.t, rules).unit_s

    async def _commit(self, duty: Duty, claim: Claim, rules: Rules) -> None:
        ballot = await asyncio.to_thread(self._notebook.ballot, claim.hash, duty.level)
        if ballot is None:
            found = self._findings.get(claim.hash)
            if found is None and self._is_late(duty, claim, rules):
                found = self._missed.get(claim.hash)
            if found is None:
                return
            ballot = await self._decide(duty, claim, found, rules)
        signed = Verdict.from_body(Envelope.from_bytes(ballot.commitment).body)
        await self._swarm.store(place(signed, ballot.commitment, rules))

    async def _decide(self, duty: Duty, claim: Claim, found: Finding, rules: Rules) -> Ballot:
        salt = self._draw(SALT_BYTES)
        words = (self._identity.peer_id, claim.epoch, claim.hash, duty.level, found.opinion, salt)
        sealed = seal(commit(*words, int(self._clock())), self._identity, rules=rules)
        ballot = Ballot(
            claim.hash, duty.level, claim.epoch, found.opinion, salt, found.error_ppm, commitment=sealed.envelope
        )
        return await asyncio.to_thread(self._notebook.keep_ballot, ballot)

    async def _open(self, duty: Duty, claim: Claim, rules: Rules) -> None:
        ballot = await asyncio.to_thread(self._notebook.ballot, claim.hash, duty.level)
        if ballot is None:
            logger.warning("a commitment cannot be opened: the notebook that it stood in is gone")
            return
        words = (self._identity.peer_id, claim.epoch, claim.hash, duty.level, ballot.opinion, ballot.salt)
        opens_s = Timeline.of(claim.t, rules).opens_s(phase_of(duty.level, Act.REVEAL))
        await self._publish(reveal(*words, ballot.error_ppm, max(opens_s, int(self._clock()))), rules)

    async def _publish(self, record: Record, rules: Rules) -> None:
        await self._swarm.store(seal(record, self._identity, rules=rules))

    async def _examine_what_is_due(
        self, due: Sequence[Duty], by_hash: Mapping[bytes, Claim], outcomes: Outcomes, rules: Rules
    ) -> None:
        """Say anew what is to be examined, in order; begin with it, unless an examination is under way."""
        self._waiting = []
        asked = {claim: number for number, claim in enumerate(self._missed, 1)}
        for duty in sorted(due, key=lambda duty: asked.get(duty.claim, 0)):  # Who hands nothing out holds nobody up.
            claim = by_hash[duty.claim]
            is_own = claim.accuser == self._identity.peer_id
            is_denied = duty.act is Act.CONTEST and claim.accused == self._identity.peer_id
            if duty.act is Act.REVEAL or is_own or is_denied or claim.hash in self._findings:
                continue
            if duty.act is Act.COMMIT and await self._has_voted(duty):
                continue
            self._waiting.append((duty, claim))
        if self._waiting and (self._examining is None or self._examining.done()):
            self._examining = asyncio.create_task(self._examine_waiting(outcomes, rules))

    async def _examine_waiting(self, outcomes: Outcomes, rules: Rules) -> None:
        """Find out one thing after the other, and sign what follows at once: the next turn may come too late."""
        try:
            while self._waiting:
                duty, claim = self._waiting.pop(0)
                if claim.hash not in self._findings:
                    await self._find_out(claim)
                if duty.until_s > self._clock():
                    await self._try(duty, claim, outcomes, rules)
        except DaemonDied:
            return  # Whoever runs the node notices.

    async def _has_voted(self, duty: Duty) -> bool:
        return await asyncio.to_thread(self._notebook.ballot, duty.claim, duty.level) is not None

    async def _find_out(self, claim: Claim) -> None:
        try:
            found = await self._found(claim)
        except DaemonDied:
            raise
        except DhtError as error:
            logger.info("the evidence of a claim cannot be had, and is asked for again: %s", error)
            _remember(self._missed, claim.hash, cannot_tell(f"The evidence cannot be had: {error}"))
            return
        except Exception:
            logger.exception("a claim could not be examined by a defect of this program; please report it")
            found = cannot_tell("It could not be examined.")
        self._missed.pop(claim.hash, None)
        _remember(self._findings, claim.hash, found)

    async def _found(self, claim: Claim) -> Finding:
        try:
            blob = await self._fetch(claim)
            evidence = await asyncio.to_thread(unpack_and_verify, blob, claim)
        except FalseEvidence as error:
            return Finding(Opinion.REFUTED, 0, f"The evidence does not hold: {error}")
        return await until_cancelled(self._examine, evidence, claim)


def _remember(findings: OrderedDict[bytes, Finding], claim: bytes, found: Finding) -> None:
    findings[claim] = found
    findings.move_to_end(claim)
    while len(findings) > MAX_FINDINGS:
        findings.popitem(last=False)
