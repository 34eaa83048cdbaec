"""Make claims of failed work: at most three in an epoch, the worst first, each with evidence that is handed out.

Whoever is on trial already, or out, is spared: the three places are for those who still do harm.

    failed audits ──hold──> candidates ──worst first──> evidence on the shelf, number and claim in the notebook ──> DHT

One of the three places of an epoch opens in each third of it, so that something worse that is found later has one.
Handing evidence out publishes the session that it is of: whoever holds an accusation here has the user's leave. Runs
in the event loop; the disk in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dht.claim import CLAIM_EPOCHS, MAX_CLAIMS, MAX_EVIDENCE_BYTES, Claim, ClaimedChunk
from dht.identity import Identity, peer_id_to_bytes
from dht.records import Envelope, place, seal
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import Receipt
from node.check.evidence import Evidence, pack, unpack_and_verify
from node.claims.notebook import Notebook
from node.claims.shelf import Shelf
from node.errors import FalseEvidence

logger = logging.getLogger(__name__)

MAX_HELD = 16
"""Accusations that wait for a place; the least wrong are let go."""
MAX_HELD_BYTES = 2 * MAX_EVIDENCE_BYTES
"""Of what all of them have opened."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """A chunk that was found false."""

    evidence: Evidence
    session: bytes
    """Id of it, 16 bytes."""
    receipt: bytes
    """Body of the receipt whose commitment the chunk stands under."""
    receipt_signature: bytes
    """The accused's, 64 bytes."""
    error_ppm: int
    """Median error that was found, millionths of the span's increment."""

    @property
    def chunk(self) -> ClaimedChunk:
        """What it is about."""
        last = self.evidence.chunks[-1].leaf
        return ClaimedChunk(Receipt.from_body(self.receipt).slot, self.session, last.segment, last.index)


class Accuser:
    """One node's accusations.

    Args:
        swarm: entered.
        identity: who accuses.
        shelf: keeps what is handed out.
        notebook: keeps which numbers were given away.
        clock: unix time, s.
    """

    def __init__(
        self, swarm: Swarm, identity: Identity, shelf: Shelf, notebook: Notebook, clock: Callable[[], float]
    ) -> None:
        self._swarm = swarm
        self._identity = identity
        self._shelf = shelf
        self._notebook = notebook
        self._clock = clock
        self._held: dict[ClaimedChunk, Accusation] = {}
        self._first: Collection[str] = ()
        """Peers that are claimed before all others."""

    def hold(self, accusation: Accusation) -> None:
        """Take an accusation on; what is wrong most will be claimed first."""
        if accusation.evidence.num_bytes > MAX_EVIDENCE_BYTES:
            logger.warning("false work is not claimed: its evidence is larger than evidence may be")
            return
        self._held.setdefault(accusation.chunk, accusation)
        worst = sorted(self._held.values(), key=self._urgency, reverse=True)
        of_each = Counter(each.chunk.slot.provider for each in worst)
        num_bytes = sum(each.evidence.num_bytes for each in worst)
        while len(worst) > MAX_HELD or num_bytes > MAX_HELD_BYTES:
            most = max(of_each.values())  # Of whom most are held, one goes, so that nobody hides behind a worse one.
            least = next(each for each in reversed(worst) if of_each[each.chunk.slot.provider] == most)
            worst.remove(least)
            of_each[least.chunk.slot.provider] -= 1
            num_bytes -= least.evidence.num_bytes
        self._held = {each.chunk: each for each in worst}

    async def claim(
        self,
        rules: Rules,
        spared: Collection[str] = (),
        published: Collection[Claim] = (),
        first: Collection[str] = (),
    ) -> list[Claim]:
        """Publish what there is a place for now; return it.

        Args:
            rules: of the swarm.
            spared: peers that need no further claim now.
            published: claims that stand on the DHT: who has lost its notebook must not give a number away twice.
            first: peers that are claimed before all others: who throws its name away can be claimed without end.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        self._first = first
        now_s = self._clock()
        epoch = rules.epoch_of(now_s)
        self._held = {chunk: each for chunk, each in self._held.items() if chunk.slot.epoch + CLAIM_EPOCHS >= epoch}
        own = {each.number for each in published if (each.accuser, each.epoch) == (self._identity.peer_id, epoch)}
        left = [each for each in await asyncio.to_thread(self._notebook.numbers_left, epoch) if each not in own]
        passed = now_s - rules.start_of(epoch)
        num_open = min(MAX_CLAIMS, 1 + int(MAX_CLAIMS * passed / rules.epoch_s)) - (MAX_CLAIMS - len(left))
        made = []
        accused = set(spared)
        for number in left[: max(0, num_open)]:
            others = [each for each in self._held.values() if each.chunk.slot.provider not in accused]
            if not others:
                break
            worst = max(others, key=self._urgency)
            accused.add(worst.chunk.slot.provider)
            claim = await self._claim(worst, rules, epoch, number)
            self._held.pop(worst.chunk, None)  # Only now: a full disk takes it the next time.
            made += [claim] if claim is not None else []
        return made

    def _urgency(self, accusation: Accusation) -> tuple[bool, tuple[int, bytes]]:
        return accusation.chunk.slot.provider in self._first, _badness(accusation)

    async def _claim(self, accusation: Accusation, rules: Rules, epoch: int, number: int) -> Claim | None:
        """Write everything down, then publish; None: it would not hold, or that chunk or number has a claim."""
        try:
            blob = await asyncio.to_thread(pack, accusation.evidence)
        except ValueError as error:
            logger.warning("false work is not claimed: %s", error)
            return None
        name = await asyncio.to_thread(self._shelf.put, blob, rules.end_of_evidence(epoch))
        last = accusation.evidence.chunks[-1].leaf
        claim = Claim(
            accuser=self._identity.peer_id,
            epoch=epoch,
            number=number,
            receipt=accusation.receipt,
            receipt_signature=accusation.receipt_signature,
            session=accusation.session,
            segment=last.segment,
            index=last.index,
            error_ppm=accusation.error_ppm,
            evidence=name,
            evidence_bytes=len(blob),
            t=int(self._clock()),
        )
        try:
            await asyncio.to_thread(unpack_and_verify, blob, claim)
        except FalseEvidence as error:  # Others would refute it, and this node would lose its voice by it.
            logger.warning("false work is not claimed, because its evidence would not hold: %s", error)
            return None
        signed = seal(claim, self._identity, rules=rules)
        chunk = _name_of(claim)
        if not await asyncio.to_thread(self._notebook.keep_claim, epoch, number, chunk, signed.envelope):
            return None
        await self._swarm.store(signed)
        return claim

    async def publish_again(self, rules: Rules, since: int, standing: Collection[bytes] = ()) -> None:
        """Publish claims as they were signed: a crash, or a swarm that did not answer, may have come between.

        Args:
            rules: of the swarm.
            since: epoch from which on.
            standing: hashes of those that stand on the DHT.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        for envelope in await asyncio.to_thread(self._notebook.claims_since, since):
            claim = Claim.from_body(Envelope.from_bytes(envelope).body)
            if claim.hash not in standing:
                await self._swarm.store(place(claim, envelope, rules))


def _name_of(claim: Claim) -> bytes:
    numbers = claim.segment.to_bytes(4, "big") + claim.index.to_bytes(4, "big")
    return peer_id_to_bytes(claim.accused) + claim.session + numbers


def _badness(accusation: Accusation) -> tuple[int, bytes]:
    return accusation.error_ppm, accusation.session
