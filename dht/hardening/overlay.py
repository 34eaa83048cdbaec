"""Look up, publish and collect records over all members' parts of the DHT.

In place of ``DHTNode``, which cannot be given another protocol class, and whose stock behaviour this mends: ``get``
merges remote records into the very dictionary that it stores for others, and prefers a stale cached value; ``store``
tells the last replica's answer instead of what happened; a peer that failed often is shunned for hours; a dead p2pd of
our own looks like an empty DHT; few replicas at the nearest ids are easily surrounded. The search is ``walk``.
This file does not know kinds of records, only that some stand at a whole region (``regions``) and others at the few
members nearest to their key. It runs on the event loop.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.errors import DaemonDied
from dht.hardening.findings import Contradicted, Findings, Forestall, StoredRecord
from dht.hardening.harvest import Conduct, harvest
from dht.hardening.protocol import BUCKET_SIZE, CALL_S, NUM_REPLICAS, AdmittedProtocol, dht_id_of, worth_of
from dht.hardening.regions import Ask, Regions
from dht.hardening.storage import MAX_SUBKEYS, OURSELVES
from dht.hardening.turns import in_turns
from dht.hardening.walk import find_nearest

logger = logging.getLogger(__name__)

NUM_WORKERS = 8
"""Peers that one search asks at once."""

MAX_SEARCHES = 4
"""Keys that one publication looks up at once."""

MAX_STORES = 8
"""Peers to which one publication sends at once."""

CHECKS_AT_ONCE = 32
"""Records that are checked before the event loop gets its turn."""

KEYS_PER_SURVEY = 4096
"""Keys whose holders are looked for at once."""

KEYS_PER_HARVEST = 64
"""Keys whose records are held at once."""


class Placed(NamedTuple):
    """A record and where it belongs."""

    key: bytes  # preimage of the DHT key
    subkey: bytes
    value: bytes
    expires_s: float  # unix seconds


class Overlay:
    """One node's view of the whole DHT."""

    def __init__(self, protocol: AdmittedProtocol, rng: random.Random | None = None) -> None:
        self.protocol = protocol
        self.regions = Regions(protocol, self.walk, rng or random.SystemRandom())

    async def join(self, peers: Collection[str]) -> None:
        """Meet admitted peers and, through them, our own neighbourhood; those that do not answer are passed by.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        if peers:
            await self.meet(peers)
            await self.walk(self.protocol.node_id, self.regions.ask_neighbours)

    async def meet(self, peers: Collection[str]) -> None:
        """Take admitted peers into the routing table, those that answer."""
        ids = [PeerID.from_base58(peer) for peer in peers]
        for peer in ids:
            self.protocol.shunned.answered(peer)
        await asyncio.gather(*(self.protocol.call_ping(peer) for peer in ids))

    def knows(self, peer: str) -> bool:
        """Say whether a peer stands in our routing table."""
        return PeerID.from_base58(peer) in self.protocol.routing_table

    def on_contradiction(self, contradicted: Contradicted) -> None:
        """Name who is told of two valid records that claim one place and time, wherever they were seen."""
        self.protocol.contradicted = contradicted

    # -- looking up --------------------------------------------------------------------------------------------------

    async def walk(self, target: DHTID, ask: Ask) -> list[PeerID]:
        """Find the members nearest to an id, nearest first, ourselves not among them.

        Args:
            target: The id.
            ask: Asks one member who is near it.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        table, own_id = self.protocol.routing_table, self.protocol.node_id
        begin = table.get_nearest_neighbors(target, BUCKET_SIZE, exclude=own_id)

        async def neighbours_of(peer: PeerID) -> list[PeerID] | None:
            neighbours = await ask(peer, target)
            return None if neighbours is None else list(neighbours.values())

        answering = await find_nearest(
            lambda peer: int(target.xor_distance(dht_id_of(peer))),
            {peer: int(target.xor_distance(node_id)) for node_id, peer in begin},
            neighbours_of,
            beam=BUCKET_SIZE,
            num_at_once=NUM_WORKERS,
        )
        if not answering:
            await self._check_daemon()
        return answering

    async def _check_daemon(self) -> None:
        """Tell a swarm in which nobody answers from a p2pd of our own through which nobody can."""
        try:
            async with asyncio.timeout(CALL_S):
                await self.protocol.p2p.identify()
        except TimeoutError:
            raise DaemonDied("the p2pd process of this node does not answer: start the node again") from None

    def _own_findings(self, key_id: DHTID, forestall: Forestall | None) -> Findings:
        findings = Findings(self.protocol.contradicted, 4 * MAX_SUBKEYS, forestall)
        for record in self.protocol.storage.records(key_id):
            findings.take(record)
        return findings

    async def collect(
        self, key: bytes, *, is_regional: bool = False, forestall: Forestall | None = None
    ) -> list[bytes]:
        """Read all records under a key from every member that should hold some; the newest of each subkey.

        Args:
            key: Preimage of the DHT key.
            is_regional: Whether a whole region holds its records.
            forestall: Checks signatures elsewhere where many come at once.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        key_id = DHTID.generate(source=key)
        findings = self._own_findings(key_id, forestall)
        if is_regional:
            await self.regions.find(key_id, findings)
        else:

            async def read(peer: PeerID, target: DHTID) -> dict[DHTID, PeerID] | None:
                answer = await self.protocol.call_find(peer, [target], {key_id: findings})
                return None if answer is None else answer[target][1]

            await self.walk(key_id, read)
        return _unexpired(findings)

    async def collect_many(
        self, keys: Sequence[bytes], *, forestall: Forestall | None = None
    ) -> AsyncIterator[list[bytes]]:
        """Read all records under many keys that whole regions hold, in far fewer calls than by ``collect``.

        Args:
            keys: Preimages of the DHT keys.
            forestall: As for ``collect``.

        Yields:
            What stands under one key, for every key, in no particular order.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        ids = [DHTID.generate(source=key) for key in keys]
        conduct = Conduct()
        for start in range(0, len(ids), KEYS_PER_SURVEY):
            holders = await self.regions.find_many(ids[start : start + KEYS_PER_SURVEY])
            near = sorted(holders)  # neighbouring keys have the same holders
            for at in range(0, len(near), KEYS_PER_HARVEST):
                part = near[at : at + KEYS_PER_HARVEST]
                findings = {key_id: self._own_findings(key_id, forestall) for key_id in part}
                await harvest(self.protocol, {key_id: holders[key_id] for key_id in part}, findings, conduct)
                for found in findings.values():
                    yield _unexpired(found)

    # -- publishing --------------------------------------------------------------------------------------------------

    async def publish(self, key: bytes, subkey: bytes, value: bytes, expires_s: float) -> int:
        """Store a record at the members nearest to its key, ourselves included when we are one of them.

        Returns:
            How many members hold it now; 0 when it is refused everywhere or a newer one stands there.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        key_id = DHTID.generate(source=key)
        if not self.protocol.is_valid(key_id.to_bytes(), subkey, value, expires_s):
            return 0
        candidates = await self.walk(key_id, self.regions.ask_neighbours)
        if not self.protocol.client_mode:
            assert self.protocol.p2p.peer_id is not None
            candidates.append(self.protocol.p2p.peer_id)
            candidates.sort(key=lambda peer: key_id.xor_distance(dht_id_of(peer)))
        num_holding = 0
        record = Placed(key, subkey, value, expires_s)
        while candidates and num_holding < NUM_REPLICAS:
            wave = candidates[: NUM_REPLICAS - num_holding]
            del candidates[: len(wave)]
            stored = await asyncio.gather(*(self.store_at(peer, [record]) for peer in wave))
            num_holding += sum(answer[0] for answer in stored)
        return num_holding

    async def publish_many(self, records: Sequence[Placed]) -> list[int]:
        """Store records at their whole regions: one look-up for each key, few calls for each member.

        Returns:
            For each record how many members hold it now, ourselves counted.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        by_key: dict[bytes, list[int]] = {}
        for index, record in enumerate(records):
            if index % CHECKS_AT_ONCE == CHECKS_AT_ONCE - 1:
                await asyncio.sleep(0)
            if self.protocol.is_valid(DHTID.generate(source=record.key).to_bytes(), *record[1:]):
                by_key.setdefault(record.key, []).append(index)
        by_peer: dict[PeerID, list[int]] = {}

        async def find(key: bytes) -> None:
            for peer in await self.regions.find(DHTID.generate(source=key)):
                by_peer.setdefault(peer, []).extend(by_key[key])

        await in_turns(find, by_key, MAX_SEARCHES)
        num_holding = [0] * len(records)

        async def store(peer: PeerID) -> None:
            indices = by_peer[peer]
            stored = await self.store_at(peer, [records[index] for index in indices])
            for index, is_stored in zip(indices, stored, strict=True):
                num_holding[index] += is_stored

        await in_turns(store, by_peer, MAX_STORES)
        return num_holding

    async def store_at(self, peer: PeerID, records: Sequence[Placed]) -> list[bool]:
        """Store valid records at one member, or here; say of each whether it is held there now."""
        keys = [DHTID.generate(source=record.key) for record in records]
        if peer == self.protocol.p2p.peer_id:
            own = peer.to_bytes()
            return [
                self.protocol.storage.store_subkey(key_id, *record[1:], OURSELVES, worth_of(own, record.value))
                for key_id, record in zip(keys, records, strict=True)
            ]
        return await self.store_by_id(
            peer, [(key_id, record[1:]) for key_id, record in zip(keys, records, strict=True)]
        )

    async def store_by_id(self, peer: PeerID, records: Sequence[tuple[DHTID, StoredRecord]]) -> list[bool]:
        """Store valid records (key's id; subkey, value, expiry) at another member; say of each whether it holds it."""
        stored = await self.protocol.call_store(
            peer,
            [key_id for key_id, _ in records],
            [value for _, (_, value, _) in records],
            [expires_s for _, (_, _, expires_s) in records],
            subkeys=[subkey for _, (subkey, _, _) in records],
        )
        if stored is None or len(stored) != len(records):
            return [False] * len(records)
        return stored


def _unexpired(findings: Findings) -> list[bytes]:
    now_s = time.time()
    return [value for _, value, expires_s in findings.records() if expires_s > now_s]
