"""Compute the digest of scores that a SNAPSHOT carries: from its own receipts, and by the swarm's anchors alone.

Whoever has the same receipts and reads the same proofs finds the same 32 bytes, because nothing is remembered from one
snapshot to the next of what was concluded. It runs on the event loop, computation in a thread.
"""

import asyncio
from collections.abc import Collection

from dht.receipts.checking import SignatureChecker
from dht.records import Envelope
from dht.standing.board import Terms, anchors_of, score_rules_of, standings_of
from dht.standing.gathering import until
from dht.standing.proof_reader import ProofReader
from dht.standing.workbook import Workbook
from dht.swarm import Swarm
from dht.work import Receipt


class SnapshotScores:
    """Digests for one publisher's snapshots."""

    def __init__(self, swarm: Swarm) -> None:
        """Begin with nothing."""
        self._swarm = swarm
        self._reader = ProofReader(swarm)

    async def __call__(self, window: range, envelopes: Collection[bytes], peers: Collection[str]) -> bytes:
        """Compute the digest.

        Args:
            window: Epochs of the snapshot, oldest first.
            envelopes: Of its receipts, signatures checked.
            peers: Who may have signed other records, beside those in the receipts.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        rules = await self._swarm.wait_for_rules()
        terms = Terms(anchors_of(self._swarm.parameters), rules, score_rules_of(self._swarm.parameters, rules))
        book = await asyncio.to_thread(_book_of, envelopes)
        known = book.peers | {*peers, *terms.anchors}
        async with SignatureChecker() as checker:
            found = await self._reader.read(known, terms.anchors, window, rules.evidence_epochs, checker)
        epoch, end_s = window[-1], rules.start_of(window[-1] + 1)
        standings = await asyncio.to_thread(standings_of, book, until(found, epoch, end_s), terms, epoch, end_s)
        return standings.scores.digest


def _book_of(envelopes: Collection[bytes]) -> Workbook:
    return Workbook(Receipt.from_body(Envelope.from_bytes(envelope).body) for envelope in envelopes)
