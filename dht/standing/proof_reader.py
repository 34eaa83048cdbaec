"""Read from the DHT what stands there about peers beside their receipts.

Verdicts and contests are looked for in epochs that have claims, and nowhere else; those that can say nothing about a
claim that is known are passed over, because anybody can sign any number of such. What a peer has signed in its own
name is under its own key; equivocations, successions and affiliations are under the peer that they are about. Rulings
of anchors are read for as long as convictions count, and all of them again once an epoch: one may be signed late, or
twice. It runs on the event loop.
"""

from collections.abc import Collection, Sequence
from typing import TypeVar

from dht.audit import Audit
from dht.claim import Claim
from dht.contest import TRIAL_EPOCHS, Contest
from dht.equivocation import Equivocation
from dht.ident import Affiliation, Succession
from dht.identity import peer_id_to_bytes
from dht.receipts.checking import SignatureChecker
from dht.records import Kind
from dht.ruling import RulingRecord, term_of
from dht.standing.epoch_reader import EpochReader
from dht.standing.proofs import Proofs
from dht.swarm import Swarm
from dht.verdict import Verdict

NUM_UNSETTLED = 2
"""Newest epochs whose audits and claims are read again, and newest terms whose rulings are."""

R = TypeVar("R", Equivocation, Succession, Affiliation)

MAX_CLAIMS_OF_KEY = 16
"""Of an accuser and an epoch, for which it has three places: two claims for one of them are worth knowing."""


class ProofReader:
    """What has been read so far."""

    def __init__(self, swarm: Swarm) -> None:
        """Begin with nothing."""
        self._swarm = swarm
        self._audits = EpochReader(swarm, Audit, NUM_UNSETTLED)
        self._claims = EpochReader(swarm, Claim, NUM_UNSETTLED, MAX_CLAIMS_OF_KEY)
        self._contests = EpochReader(swarm, Contest, TRIAL_EPOCHS + 1)
        self._verdicts = EpochReader(swarm, Verdict, TRIAL_EPOCHS + 1)
        self._rulings = EpochReader(swarm, RulingRecord, NUM_UNSETTLED)
        self._present = -1  # epoch of the last call

    @property
    def asked(self) -> dict[int, frozenset[tuple[str, int]]]:
        """By kind: peers and epochs under which the last call has read, of claims and what is about them."""
        return {
            Kind.CLAIM: self._claims.asked,
            Kind.CONTEST: self._contests.asked,
            Kind.VERDICT: self._verdicts.asked,
        }

    async def read(
        self,
        peers: Collection[str],
        anchors: Collection[str],
        window: range,
        evidence_epochs: int,
        checker: SignatureChecker,
        *,
        is_anchor: bool = False,
    ) -> Proofs:
        """Read what has come, and return all that is known.

        Args:
            peers: Peer ids of all who may have signed something, or may be named in it.
            anchors: Peer ids of those whose rulings are read, and who may deny claims for others.
            window: Epochs that are read, oldest first; the last one is the present. Of older ones nobody could say any
                more who held which blocks, and so who had to judge.
            evidence_epochs: Newest epochs on whose claims rulings are read.
            checker: Checks signatures.
            is_anchor: Whether claims, too, are all read again once an epoch: others rely on it that nobody dates one
                back to when they look no more.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        present, oldest = window[-1], window[0]
        if present > self._present:
            self._rulings.begin_again()
            if is_anchor:
                self._claims.begin_again()
        self._present = present
        claims = await self._claims.read(peers, window, present, oldest, checker)
        parties = {claim.hash: (claim.epoch, claim.accuser, claim.accused) for claim in claims}
        tried = {claim.epoch for claim in claims}

        def may_object(contest: Contest) -> bool:
            if contest.claim not in parties:
                return False
            epoch, *others = parties[contest.claim]
            return contest.epoch == epoch and contest.contester in (*others, *anchors)

        def is_about_one(verdict: Verdict) -> bool:
            return verdict.claim in parties and verdict.epoch == parties[verdict.claim][0]

        accused = {peer for _, _, peer in parties.values()}
        peers = {*peers, *accused}  # Whoever is accused is heard, known before or not.
        return Proofs(
            equivocations=await self._about(Equivocation, peers, checker),
            successions=await self._about(Succession, peers, checker),
            affiliations=await self._about(Affiliation, peers, checker),
            audits=await self._audits.read(peers, window, present, window[0], checker),
            claims=claims,
            contests=await self._contests.read(peers, tried, present, oldest, checker, may_object),
            verdicts=await self._verdicts.read(peers, tried, present, oldest, checker, is_about_one),
            rulings=await self._ruled(anchors, range(max(0, present + 1 - evidence_epochs), present + 1), checker),
        )

    async def _ruled(
        self, anchors: Collection[str], epochs: range, checker: SignatureChecker
    ) -> tuple[RulingRecord, ...]:
        oldest, present = term_of(epochs[0]), term_of(epochs[-1])
        return await self._rulings.read(anchors, range(oldest, present + 1), present, oldest, checker)

    async def _about(self, kind: type[R], peers: Collection[str], checker: SignatureChecker) -> tuple[R, ...]:
        async def forestall(envelopes: Sequence[bytes]) -> None:  # Who signs for two names fills a key by itself.
            await checker.forestall(self._swarm.validator, envelopes)

        keys = [(peer_id_to_bytes(peer),) for peer in peers]
        reading = self._swarm.read_many(kind.KIND, keys, forestall=forestall)
        records = [signed.record async for found in reading for signed in found]
        return tuple(record for record in records if isinstance(record, kind))
