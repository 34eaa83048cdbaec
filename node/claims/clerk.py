"""An anchor's word for everybody else: sign what it found final of claims, once of each, and keep it readable.

    watched from before the claim was signed ─┐
    the claim itself came too late           ─┼──> RULING in the notebook ──> DHT, again where it is missing
    most anchors have signed so              ─┘

What an anchor has not watched it cannot tell from what was dated back, so of that it says nothing by itself. It never
signs two rulings about one claim: neither would count. Runs in the event loop; the disk in threads.
"""

from __future__ import annotations

import asyncio
import logging

from dht.identity import Identity
from dht.judgement.outcomes import Ruling, State
from dht.judgement.signed_rulings import record_of
from dht.records import Envelope, place, seal
from dht.rules import Rules
from dht.ruling import RulingRecord
from dht.standing.board import Standings
from dht.standing.sightings import Sightings
from dht.swarm import Swarm
from node.claims.notebook import Notebook

logger = logging.getLogger(__name__)

MAX_AT_ONCE = 256
"""Rulings that are published in one turn."""


class Clerk:
    """One anchor's rulings.

    Args:
        swarm: entered.
        identity: of the anchor.
        notebook: keeps what was signed.
    """

    def __init__(self, swarm: Swarm, identity: Identity, notebook: Notebook) -> None:
        self._swarm = swarm
        self._identity = identity
        self._notebook = notebook

    async def attend(self, known: Standings, sightings: Sightings, rules: Rules, now_s: float) -> None:
        """Sign what can be signed now, and publish what of all that was signed cannot be read.

        Args:
            known: what the anchor's board has just found.
            sightings: what it has seen come.
            rules: of the swarm.
            now_s: unix seconds.

        Raises:
            DaemonDied: our own p2pd has ended.
            OSError: the disk does not do its part; nothing new is published.
        """
        oldest = rules.epoch_of(now_s) + 1 - rules.evidence_epochs
        standing = [each for each in known.proofs.rulings if each.anchor == self._identity.peer_id]
        signed = await asyncio.to_thread(self._notebook.signed_since, oldest)
        done = {each.claim for each in standing} | signed.keys()
        new = (record_of(each, self._identity.peer_id) for each in _ripe(known, sightings) if each.claim not in done)
        fit = [each for each in new if each.epoch >= oldest and each.objection(rules, now_s) is None]
        for record in sorted(fit, key=lambda each: each.outcome)[:MAX_AT_ONCE]:
            envelope = seal(record, self._identity, rules=rules).envelope
            await asyncio.to_thread(self._notebook.keep_signed, record.claim, record.epoch, envelope)
            signed[record.claim] = envelope
            logger.info(
                "the ruling on the claim %s is signed: %s", record.claim.hex()[:16], record.outcome.name.lower()
            )
        readable = {each.claim for each in standing}
        missing = [envelope for claim, envelope in signed.items() if claim not in readable][:MAX_AT_ONCE]
        if missing:
            await self._swarm.store_many([place(_read(envelope), envelope, rules) for envelope in missing])


def _ripe(known: Standings, sightings: Sightings) -> list[Ruling]:
    """List what an anchor may put its name to, its own findings before others'."""
    claims = {claim.hash: claim for claim in known.proofs.claims}
    own = {
        claim: ruling
        for claim, ruling in known.settled.items()
        if claim in claims and (ruling.state is State.IGNORED or sightings.since_s <= claims[claim].t)
    }  # Of what is ignored it knows that it came too late.
    return list({**known.ruled, **own}.values())


def _read(envelope: bytes) -> RulingRecord:
    return RulingRecord.from_body(Envelope.from_bytes(envelope).body)
