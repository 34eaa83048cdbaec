"""Compute the digest of scores that a SNAPSHOT carries: from its own receipts, and by the swarm's anchors alone.

Whoever has the same receipts and reads the same proofs finds the same 32 bytes. It runs on the event loop, computation
in a thread.
"""

import asyncio
from collections.abc import Collection, Sequence

from dht.receipts.checking import SignatureChecker
from dht.records import Envelope
from dht.reputation import ScoreRules
from dht.standing.board import anchors_of, score_rules_of, standings_of
from dht.standing.gathering import until
from dht.standing.proof_reader import ProofReader
from dht.standing.proofs import Judge, Proofs, unjudged
from dht.standing.workbook import Workbook
from dht.swarm import Swarm
from dht.work import Receipt


class SnapshotScores:
    """Digests for one publisher's snapshots."""

    def __init__(self, swarm: Swarm, judge: Judge = unjudged) -> None:
        """Begin with nothing.

        Args:
            swarm: Where.
            judge: Says what becomes of claims.
        """
        self._swarm = swarm
        self._judge = judge
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
        parameters = self._swarm.parameters
        anchors = anchors_of(parameters)
        book = await asyncio.to_thread(_book_of, envelopes)
        async with SignatureChecker() as checker:
            found = await self._reader.read(book.peers | {*peers, *anchors}, window, checker)
        proofs = until(found, window[-1], rules.start_of(window[-1] + 1))
        return await asyncio.to_thread(
            _digest, book, proofs, self._judge, anchors, window[-1], score_rules_of(parameters, rules)
        )


def _book_of(envelopes: Collection[bytes]) -> Workbook:
    return Workbook(Receipt.from_body(Envelope.from_bytes(envelope).body) for envelope in envelopes)


def _digest(
    book: Workbook, proofs: Proofs, judge: Judge, anchors: Sequence[str], epoch: int, rules: ScoreRules
) -> bytes:
    return standings_of(book, proofs, judge, anchors, epoch, rules).scores.digest
