"""Store again what this member holds for others, where members that should hold it do not: records outlive their nodes.

    a round, at a random time in each part of an epoch
      look up our neighbourhood ──> for each key that is due: who should hold it
      ask each of them for digests, 64 keys a call ──> who holds something else than we do
      read what those hold that do hold something ──> take what is newer, send what they lack, byte for byte

Every key is due once an epoch, in a part that is drawn anew, so that holders do not all come at once; whoever comes
second finds nothing to do. Nothing is sent unasked, and a round is bounded in keys and records.
This file does not know which kinds of records are kept so, nor what they mean. It runs on the event loop.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.density import choose, radius_of
from dht.hardening.duty import take_turn
from dht.hardening.findings import Findings, StoredRecord
from dht.hardening.overlay import Overlay
from dht.hardening.protocol import MAX_KEYS_PER_CALL, dht_id_of
from dht.hardening.regions import distances_to
from dht.hardening.storage import MAX_SUBKEYS, PLACES_BYTES
from dht.hardening.turns import in_turns
from dht.rules import Rules

ROUNDS_PER_EPOCH = 4
"""Parts of an epoch, each with one round; a key is due in one of them."""

MAX_KEYS = 2048
"""Most keys of one round; the others wait for the next."""

MAX_FAR_KEYS = 16
"""Most keys of one round whose region we are not in, and which are therefore looked up one by one."""

MAX_RECORDS = 8192
"""Most records that one round sends to one member."""

MAX_FALSE = 3
"""Digests of one member that differ from ours for nothing, after which it is left alone for the round."""

CARE_S = 60.0
"""Seconds that one member may take in a round."""

MAX_PEERS = 8
"""Members that are asked at once."""

KEYS_AT_ONCE = 256
"""Keys that are looked at before the event loop gets its turn."""

Lacking = list[tuple[DHTID, StoredRecord]]


class Keeper:
    """Cares for the records of a member's part of the DHT; ``run`` ends by cancellation."""

    def __init__(
        self, overlay: Overlay, rules: Callable[[], Rules], is_kept: Callable[[bytes], bool], rng: random.Random
    ) -> None:
        """Describe what is kept.

        Args:
            overlay: Where.
            rules: Gives the swarm's rules, which may become known late.
            is_kept: Says of an envelope whether its holders store it again.
            rng: Draws when.
        """
        self._overlay = overlay
        self._protocol = overlay.protocol
        self._rules = rules
        self._is_kept = is_kept
        self._rng = rng
        self._due: dict[DHTID, int] = {}  # rounds to go until a key is due
        self.num_sent = 0  # records that members lacked and took from us
        self.num_taken = 0  # records that we lacked and took from members

    async def run(self) -> None:
        """Do a round at a random time in each part of an epoch, until p2pd ends."""
        while True:
            part_s = self._rules().epoch_s / ROUNDS_PER_EPOCH
            at_s = self._rng.uniform(0.0, part_s)
            await asyncio.sleep(at_s)
            if not await take_turn(self.round(), "keeping records", logging.DEBUG):
                return
            await asyncio.sleep(part_s - at_s)

    def take_due(self, keys: Iterable[DHTID]) -> list[DHTID]:
        """Say which of our keys are due in this round; a key that is seen first is due soon, and then once an epoch."""
        known = set(keys)
        self._due = {key: rounds for key, rounds in self._due.items() if key in known}
        due: list[DHTID] = []
        for key in known:
            rounds = self._due.get(key, self._rng.randrange(ROUNDS_PER_EPOCH))
            if rounds <= 0 and len(due) < MAX_KEYS:
                due.append(key)
                # Once an epoch, a round earlier or later as it is drawn.
                rounds = ROUNDS_PER_EPOCH - 1 + self._rng.randrange(-1, 2)
            else:
                rounds -= 1
            self._due[key] = rounds
        return due

    async def round(self, keys: Iterable[DHTID] | None = None) -> None:
        """Care for the keys that are due, or for those given.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        due = self.take_due(await self._kept_keys()) if keys is None else list(keys)
        if not due:
            return
        asked: dict[PeerID, list[DHTID]] = {}
        for key, members in (await self._holders(due)).items():
            for peer in members:
                asked.setdefault(peer, []).append(key)
        await in_turns(lambda peer: self._care_in_time(peer, asked[peer]), asked, MAX_PEERS)

    async def _kept_keys(self) -> list[DHTID]:
        """List the keys of which the first record is of a kind that is kept: a key has records of one kind."""
        kept = []
        for number, (key, (records, _)) in enumerate(list(self._protocol.storage.items())):
            if number % KEYS_AT_ONCE == 0:
                await asyncio.sleep(0)
            first = next(iter(records.items()), None)
            if first is not None and self._is_kept(first[1].value):
                kept.append(key)
        return kept

    async def _holders(self, keys: Iterable[DHTID]) -> dict[DHTID, list[PeerID]]:
        """Say for each key which other members should hold it.

        The regions of all keys near us lie within our neighbourhood, so one look-up serves them all.
        """
        own, protocol = self._protocol.node_id, self._protocol
        radius = radius_of(await self._overlay.regions.size())
        near = set(await self._overlay.walk(own, self._overlay.regions.ask_neighbours))
        near.update(protocol.routing_table.uid_to_peer_id.values())
        holders: dict[DHTID, list[PeerID]] = {}
        num_far = 0
        for key in keys:
            if int(own.xor_distance(key)) <= radius:
                holders[key] = _nearest(key, [*near, protocol.p2p.peer_id], radius)
            elif num_far < MAX_FAR_KEYS:
                num_far += 1
                holders[key] = await self._overlay.regions.find(key)
            await asyncio.sleep(0)
        return {key: [peer for peer in peers if peer != protocol.p2p.peer_id] for key, peers in holders.items()}

    async def _care_in_time(self, peer: PeerID, keys: list[DHTID]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CARE_S):
                await self._care(peer, keys)

    async def _care(self, peer: PeerID, keys: list[DHTID]) -> None:
        """Bring a member to hold what we hold under the keys, and ourselves to hold what it holds."""
        lacking: Lacking = []
        num_false = 0
        for start in range(0, len(keys), MAX_KEYS_PER_CALL):
            part = keys[start : start + MAX_KEYS_PER_CALL]
            answer = await self._protocol.call_held(peer, part)
            if answer is None:
                return
            for key in part:
                digest = answer[key][0]
                if digest[:PLACES_BYTES] != self._protocol.storage.digest(key)[:PLACES_BYTES] and num_false < MAX_FALSE:
                    num_taken = self.num_taken
                    missing = await self._lacking(peer, key, is_empty=not digest)
                    num_false += not missing and self.num_taken == num_taken
                    lacking.extend(missing)
            if len(lacking) >= MAX_RECORDS or num_false >= MAX_FALSE:
                break
        if lacking:
            stored = await self._overlay.store_by_id(peer, lacking[:MAX_RECORDS])
            self.num_sent += sum(stored)

    async def _lacking(self, peer: PeerID, key: DHTID, *, is_empty: bool) -> Lacking:
        """Say what a member lacks under a key; take from it what is newer than ours."""
        ours = {record[0]: record for record in self._protocol.storage.records(key)}
        if is_empty:
            return [(key, record) for record in ours.values()]
        findings = Findings(self._protocol.contradicted, 2 * MAX_SUBKEYS)
        for record in ours.values():
            findings.take(record)
        answer = await self._protocol.call_find(peer, [key], {key: findings})
        if answer is None:
            return []
        theirs = {subkey: expires_s for subkey, _, expires_s in answer[key][0]}
        for record in findings.records():
            if theirs.get(record[0]) == record[2] and ours.get(record[0]) != record:
                self.num_taken += self._protocol.storage.store_subkey(key, *record, peer.to_bytes())
        return [(key, record) for record in ours.values() if theirs.get(record[0], 0.0) < record[2]]


def _nearest(key: DHTID, members: list[PeerID], radius: int) -> list[PeerID]:
    ranked = sorted(members, key=lambda peer: key.xor_distance(dht_id_of(peer)))
    return [ranked[index] for index in choose(distances_to(key, ranked), radius)]
