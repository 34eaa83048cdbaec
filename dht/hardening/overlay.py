"""Look up, publish and collect records over all members' parts of the DHT.

In place of ``DHTNode``, which cannot be given another protocol class, and whose stock behaviour this mends: ``get``
merges remote records into the very dictionary that it stores for others, and prefers a stale cached value; ``store``
tells the last replica's answer instead of what happened; a peer that failed often is shunned for hours; a dead p2pd of
our own looks like an empty DHT. The search itself stays hivemind's ``traverse_dht``.
This file does not know kinds of records. It runs on the event loop.
"""

import asyncio
import logging
from collections.abc import Collection

from hivemind.dht.node import Blacklist
from hivemind.dht.routing import DHTID
from hivemind.dht.traverse import traverse_dht
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.errors import DaemonDied
from dht.hardening.protocol import BUCKET_SIZE, CALL_S, NUM_REPLICAS, AdmittedProtocol, StoredRecord, dht_id_of
from dht.hardening.storage import MAX_SUBKEYS

logger = logging.getLogger(__name__)

NUM_WORKERS = 8
"""Peers that one search asks at once."""

SHUNNED_S = 5.0
"""Seconds for which searches pass by a peer that did not answer."""


class Overlay:
    """One node's view of the whole DHT."""

    def __init__(self, protocol: AdmittedProtocol) -> None:
        self.protocol = protocol
        self._shunned = Blacklist(SHUNNED_S, 1.0)

    async def join(self, peers: Collection[str]) -> None:
        """Meet admitted peers and, through them, our own neighbourhood; those that do not answer are passed by.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        if peers:
            await self.meet(peers)
            await self.search(self.protocol.node_id)

    async def meet(self, peers: Collection[str]) -> None:
        """Take admitted peers into the routing table, those that answer."""
        ids = [PeerID.from_base58(peer) for peer in peers]
        for peer in ids:
            self._shunned.register_success(peer)
        await asyncio.gather(*(self.protocol.call_ping(peer) for peer in ids))

    def knows(self, peer: str) -> bool:
        """Say whether a peer stands in our routing table."""
        return PeerID.from_base58(peer) in self.protocol.routing_table

    async def search(self, key_id: DHTID) -> tuple[list[PeerID], dict[bytes, StoredRecord]]:
        """Find the members nearest to an id, and every record that stands at it.

        Returns:
            Peers, nearest first, ourselves not among them; and the newest record of each subkey.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        peers: dict[DHTID, PeerID] = dict(
            self.protocol.routing_table.get_nearest_neighbors(key_id, BUCKET_SIZE, exclude=self.protocol.node_id)
        )
        found: dict[bytes, StoredRecord] = {}
        standing = self.protocol.storage.get(key_id)
        if standing is not None:
            _merge(found, [(subkey, value, expires_s) for subkey, (value, expires_s) in standing.value.items()])

        async def ask(node_id: DHTID, queries: Collection[DHTID]) -> dict[DHTID, tuple[tuple[DHTID, ...], bool]]:
            peer = peers[node_id]
            answer = None if peer in self._shunned else await self.protocol.call_find(peer, queries)
            if answer is None:
                self._shunned.register_failure(peer)
                dead.add(node_id)
                return dict.fromkeys(queries, ((), False))
            self._shunned.register_success(peer)
            records, neighbours = answer[key_id]
            _merge(found, records)
            peers.update(neighbours)
            return {key_id: (tuple(neighbours), False)}

        dead: set[DHTID] = set()
        nearest, _ = await traverse_dht(
            queries=[key_id],
            initial_nodes=list(peers),
            beam_size=BUCKET_SIZE,
            num_workers=NUM_WORKERS,
            queries_per_call=1,
            get_neighbors=ask,
            visited_nodes={key_id: {self.protocol.node_id}},
        )
        answering = [peers[node_id] for node_id in nearest[key_id] if node_id not in dead]
        if not answering:
            await self._check_daemon()
        return answering, found

    async def _check_daemon(self) -> None:
        """Tell a swarm in which nobody answers from a p2pd of our own through which nobody can."""
        try:
            async with asyncio.timeout(CALL_S):
                await self.protocol.p2p.identify()
        except TimeoutError:
            raise DaemonDied("the p2pd process of this node does not answer: start the node again") from None

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
        candidates, _ = await self.search(key_id)
        if not self.protocol.client_mode:
            assert self.protocol.p2p.peer_id is not None
            candidates.append(self.protocol.p2p.peer_id)
            candidates.sort(key=lambda peer: key_id.xor_distance(dht_id_of(peer)))
        num_holding = 0
        while candidates and num_holding < NUM_REPLICAS:
            wave = candidates[: NUM_REPLICAS - num_holding]
            del candidates[: len(wave)]
            stored = await asyncio.gather(*(self._store_at(peer, key_id, subkey, value, expires_s) for peer in wave))
            num_holding += sum(stored)
        return num_holding

    async def _store_at(self, peer: PeerID, key_id: DHTID, subkey: bytes, value: bytes, expires_s: float) -> bool:
        if peer == self.protocol.p2p.peer_id:
            stored: bool = self.protocol.storage.store_subkey(key_id, subkey, value, expires_s)
            return stored
        return await self.protocol.call_store(peer, [key_id], [value], expires_s, subkeys=[subkey]) == [True]

    async def collect(self, key: bytes) -> list[bytes]:
        """Read all records under a key from every member that should hold some; the newest of each subkey.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        _, found = await self.search(DHTID.generate(source=key))
        return [value for _, value, _ in found.values()]


def _merge(found: dict[bytes, StoredRecord], records: Collection[StoredRecord]) -> None:
    for subkey, value, expires_s in records:
        standing = found.get(subkey)
        if (standing is None and len(found) < 4 * MAX_SUBKEYS) or (standing is not None and standing[2] < expires_s):
            found[subkey] = (subkey, value, expires_s)
