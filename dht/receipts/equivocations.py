"""Publish the proof whenever this node sees two receipts that contradict each other, stored here or read elsewhere.

The storage keeps one record for a place, and a look-up one; where valid ones of equal age differ, both come here before
one is dropped (``Swarm.on_contradiction``). A few proofs against one peer do, so a liar cannot make honest members work
for ever. Receipts with the same body and other signatures are no lie. This file does not know what a lie costs. It runs
on the event loop.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from typing import Self

from dht.equivocation import Equivocation, find_equivocations
from dht.errors import BadRecord
from dht.hardening.duty import take_turn
from dht.identity import peer_id_to_bytes
from dht.records import Envelope, Kind, SignedRecord, seal
from dht.swarm import Swarm

logger = logging.getLogger(__name__)

MAX_WAITING = 64
"""Proofs that wait to be published; more are dropped, and found again by whoever reads the receipts."""

PROOFS_PER_PEER = 4
"""Proofs against one peer that one node publishes, and that it looks for on the DHT before it adds one."""

MAX_ACCUSED = 4096
"""Peers of whom is remembered how many proofs against them were published; the oldest is forgotten first."""

RETRY_S = 5.0
"""Seconds until a proof that nobody took is tried once more."""


class EquivocationWatch:
    """An async context manager; inside it, proofs of contradictions that this node sees are published."""

    def __init__(self, swarm: Swarm) -> None:
        """Describe the watch.

        Args:
            swarm: Whose contradictions are heard, and where proofs are published.
        """
        self._swarm = swarm
        self._waiting: asyncio.Queue[Equivocation] = asyncio.Queue(MAX_WAITING)
        self._published: OrderedDict[str, int] = OrderedDict()
        self._task: asyncio.Task[None] | None = None
        self.counts: Counter[str] = Counter()  # proofs found, published, refused by all and dropped

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._publish_all())
        self._swarm.on_contradiction(self.hear)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._swarm.on_contradiction(_ignore)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def accused(self) -> tuple[str, ...]:
        """Peers whose contradictions were seen, the last one last."""
        return tuple(self._published)

    def hear(self, one: bytes, other: bytes) -> None:
        """Take in two valid envelopes that claim one place and time; those that prove nothing are let go."""
        try:
            opened = [Envelope.from_bytes(one), Envelope.from_bytes(other)]
            if any(envelope.kind != Kind.RECEIPT for envelope in opened):
                return
            proofs = list(find_equivocations(opened))
        except (BadRecord, ValueError) as error:
            logger.debug("a contradiction proves nothing: %s", error)
            return
        for proof in proofs:
            self._accuse(proof)

    def _accuse(self, proof: Equivocation) -> None:
        self.counts["found"] += 1
        if self._published.get(proof.accused, 0) >= PROOFS_PER_PEER or self._waiting.full():
            self.counts["dropped"] += 1
            return
        self._published[proof.accused] = self._published.pop(proof.accused, 0) + 1
        if len(self._published) > MAX_ACCUSED:
            self._published.popitem(last=False)
        self._waiting.put_nowait(proof)

    async def _publish_all(self) -> None:
        while True:
            proof = await self._waiting.get()
            if not await take_turn(self._publish(proof), f"publishing a proof against {proof.accused}"):
                return

    async def _publish(self, proof: Equivocation) -> None:
        is_proven = await publish_proof(self._swarm, proof)
        if not is_proven:
            await asyncio.sleep(RETRY_S)
            is_proven = await publish_proof(self._swarm, proof)
        self.counts["published" if is_proven else "refused"] += 1


async def publish_proof(swarm: Swarm, proof: Equivocation) -> bool:
    """Publish a proof, unless as many as do stand there already; say whether the accused is proven a liar now.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    signed: SignedRecord = seal(proof, rules=swarm.validator.rules)
    standing = await read_proofs(swarm, proof.accused)
    if proof in standing or len(standing) >= PROOFS_PER_PEER:
        return True
    logger.warning("peer %s has signed two receipts that contradict each other", proof.accused)
    return await swarm.store(signed)


async def read_proofs(swarm: Swarm, accused: str) -> list[Equivocation]:
    """Read the proofs against a peer.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    found = await swarm.fetch(Kind.EQUIVOCATION, (peer_id_to_bytes(accused),))
    return [record for record in found if isinstance(record, Equivocation)]


def _ignore(_: bytes, __: bytes) -> None:
    """Hear nothing."""
