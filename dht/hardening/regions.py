"""Find the members that hold a record's region: those nearest to its key, and others where ids crowd around it.

Kademlia stores at the nearest few, and whoever grinds keys can be those. How far a region reaches follows from the size
of the whole swarm (``density``), which look-ups of random ids tell. Where the nearest members lie closer together than
that, look-ups of ids spread over the region find the others, and a crowd that chance does not explain is counted.
This file does not know records beyond where they stand. It runs on the event loop.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.density import (
    ID_BITS,
    REGION_NODES,
    Density,
    choose,
    is_crowded,
    is_narrow,
    radius_of,
    sampled_ids,
    spread,
)
from dht.hardening.findings import Findings
from dht.hardening.protocol import BUCKET_SIZE, AdmittedProtocol, dht_id_of
from dht.hardening.turns import in_turns

logger = logging.getLogger(__name__)

NUM_TARGETS = 6
"""Look-ups that are spread over a region whose nearest members are not all of it."""

PART_NODES = 5
"""Members that are expected in one part of a block, so few that one look-up finds them all."""

MIN_PARTS = 4
"""Fewest parts of a block: no single look-up decides about all its keys."""

MAX_SURVEYS = 2
"""Blocks that are looked through at once."""

MAX_WALKS = 4
"""Look-ups in one block at once."""

DOUBTED_S = 5.0
"""Seconds after which a size is measured again before anything is called strange: the swarm may have grown."""

ALARM_S = 60.0
"""Seconds between two lines in the log about crowds; all are counted."""

Ask = Callable[[PeerID, DHTID], Awaitable[dict[DHTID, PeerID] | None]]
"""Asks a peer for the neighbours of an id; None when it does not answer."""

Walk = Callable[[DHTID, Ask], Awaitable[list[PeerID]]]
"""Finds the ``BUCKET_SIZE`` members nearest to an id, ourselves not among them."""


class Regions:
    """What one node knows of the swarm's size, and its way to the members of any region."""

    def __init__(self, protocol: AdmittedProtocol, walk: Walk, rng: random.Random) -> None:
        """Know nothing yet.

        Args:
            protocol: Asks peers.
            walk: Looks an id up.
            rng: Draws ids that no one else can foresee.
        """
        self._protocol = protocol
        self._walk = walk
        self._rng = rng
        self._density = Density()
        self._measuring = asyncio.Lock()
        self._alarmed_s = -ALARM_S
        self.num_crowded = 0  # regions in which ids crowded around the key when they were looked up

    async def size(self) -> float:
        """Give how many members the swarm has by look-ups of random ids, which are made when the last ones are old."""
        async with self._measuring:
            num_missing = self._density.num_missing(time.monotonic())
            for target in map(DHTID, sampled_ids(self._rng.getrandbits(ID_BITS), num_missing)):
                members = self._with_us(await self._walk(target, self.ask_neighbours))
                self._density.note(time.monotonic(), distances_to(target, members), BUCKET_SIZE)
        return self._density.size(time.monotonic())

    async def radius(self) -> int:
        """Give how far from its key a record's region reaches."""
        return radius_of(await self.size())

    async def find(self, key_id: DHTID, findings: Findings | None = None) -> list[PeerID]:
        """Find the members that hold a region, ourselves included when we are one of them.

        Args:
            key_id: Its centre.
            findings: Take in what these members hold under the key; None: nothing is read.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        have_read: set[PeerID] = set()

        async def read(peer: PeerID, target: DHTID) -> dict[DHTID, PeerID] | None:
            assert findings is not None
            have_read.add(peer)
            answer = await self._protocol.call_find(peer, [target], {key_id: findings})
            return None if answer is None else answer[target][1]

        members = self._with_us(await self._walk(key_id, self.ask_neighbours if findings is None else read))
        chosen = await self.choose(key_id, members)
        if findings is not None:
            unread = [peer for peer in chosen if peer not in have_read and peer != self._protocol.p2p.peer_id]
            await asyncio.gather(*(read(peer, key_id) for peer in unread))
        return chosen

    async def find_many(self, keys: Collection[DHTID]) -> dict[DHTID, list[PeerID]]:
        """Find the members that hold the regions of many keys: keys that share a part of the id space share look-ups.

        A block is an aligned part of the id space in which two to four times the members of a region are expected.
        Where more keys lie in one than it has parts, all its members are looked up. Few keys are looked up alone; so is
        a key around which ids crowd, and one whose nearest members reach beyond the block.

        Raises:
            DaemonDied: Our own p2pd does not answer.
        """
        size = await self.size()
        bits = min(ID_BITS, radius_of(size).bit_length() + 1)
        num_parts = _num_parts(size, bits)
        blocks: dict[int, list[DHTID]] = {}
        for key in keys:
            blocks.setdefault(int(key) >> bits, []).append(key)
        found: dict[DHTID, list[PeerID]] = {}

        async def survey(block: int) -> None:
            members = await self._members_of(block, bits, num_parts) if len(blocks[block]) > num_parts else []
            for key in blocks[block]:
                await asyncio.sleep(0)
                found[key] = _holders(key, members, size, bits) or await self.find(key)

        await in_turns(survey, blocks, MAX_SURVEYS)
        return found

    async def _members_of(self, block: int, bits: int, num_parts: int) -> list[PeerID]:
        """Look up the members of the ids that begin with ``block`` and go on for ``bits``."""
        members: set[PeerID] = set()
        part = (1 << bits) // num_parts

        async def look(number: int) -> None:
            target = DHTID((block << bits) + number * part + part // 2)
            members.update(await self._walk(target, self.ask_neighbours))

        await in_turns(look, range(num_parts), MAX_WALKS)
        return self._with_us(list(members))

    async def choose(self, key_id: DHTID, members: list[PeerID]) -> list[PeerID]:
        """Choose a region's members among those found near its key, and look for more of them where that is wanted."""
        size = await self._size_of_swarm_with(distances_to(key_id, members))
        radius = radius_of(size)
        if is_narrow(distances_to(key_id, members), radius):
            targets = [DHTID(target) for target in spread(int(key_id), radius, NUM_TARGETS)]
            found = await asyncio.gather(*(self._walk(target, self.ask_neighbours) for target in targets))
            members = list({*members, *(peer for peers in found for peer in peers)})
        members.sort(key=lambda peer: key_id.xor_distance(dht_id_of(peer)))
        distances = distances_to(key_id, members)
        if is_crowded(distances, size):
            self._alarm(key_id, distances, radius)
        return [members[index] for index in choose(distances, radius)]

    async def _size_of_swarm_with(self, distances: list[int]) -> float:
        """Give the swarm's size, measured anew where the nearest members are not what it was a while ago."""
        size = await self.size()
        is_strange = is_narrow(distances, radius_of(size)) or is_crowded(distances, size)
        if is_strange and self._density.age_s(time.monotonic()) > DOUBTED_S:
            self._density.forget()
            size = await self.size()
        return size

    def _alarm(self, key_id: DHTID, distances: list[int], radius: int) -> None:
        self.num_crowded += 1
        if time.monotonic() - self._alarmed_s >= ALARM_S:
            self._alarmed_s = time.monotonic()
            logger.warning(
                "%d members crowd around %s..., which chance does not explain: somebody may be trying to hide records",
                sum(distance <= radius for distance in distances),
                key_id.to_bytes().hex()[:8],
            )

    async def ask_neighbours(self, peer: PeerID, target: DHTID) -> dict[DHTID, PeerID] | None:
        """Ask a peer who is near an id, without reading what it holds."""
        answer = await self._protocol.call_held(peer, [target])
        return None if answer is None else answer[target][1]

    def _with_us(self, members: list[PeerID]) -> list[PeerID]:
        own = self._protocol.p2p.peer_id
        return members if self._protocol.client_mode or own in members else [*members, own]


def _num_parts(size: float, bits: int) -> int:
    """Say in how many parts the members of a block are looked up: a power of two."""
    expected = size * 2.0 ** (bits - ID_BITS)
    return 1 << max(MIN_PARTS.bit_length() - 1, math.ceil(math.log2(max(1.0, expected / PART_NODES))))


def _holders(key_id: DHTID, members: list[PeerID], size: float, bits: int) -> list[PeerID]:
    """Choose who holds a key's region among the members of its block; none where they do not tell."""
    ranked = sorted(members, key=lambda peer: key_id.xor_distance(dht_id_of(peer)))
    distances, radius = distances_to(key_id, ranked), radius_of(size)
    if is_narrow(distances, radius) or is_crowded(distances, size):
        return []
    chosen = choose(distances, radius)
    reaches_beyond = len(chosen) < REGION_NODES or distances[chosen[-1]] >> bits > 0
    return [] if reaches_beyond and bits < ID_BITS else [ranked[index] for index in chosen]


def distances_to(target: DHTID, members: list[PeerID]) -> list[int]:
    """Give the distances of members from an id, in rising order."""
    return sorted(int(target.xor_distance(dht_id_of(peer))) for peer in members)
