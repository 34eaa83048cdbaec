"""Keep an identity enrolled in a swarm: its IDENT record, renewed in every epoch, counts from the epoch it was made in.

The epoch and its proof of work are kept in a file (``beginnings``); where that is lost, what stands on the DHT tells
them. This file does not know what an identity is worth. It runs on the event loop; the proof is found in a thread.
"""

import asyncio
import logging
import time
from pathlib import Path

from dht.beginnings import Beginning, read_beginnings, write_beginning
from dht.errors import DaemonDied, DhtError
from dht.ident import Ident, Role, find_proof, shard_of
from dht.identity import Identity
from dht.records import Kind, seal
from dht.rules import Rules
from dht.swarm import Swarm

logger = logging.getLogger(__name__)

MAX_SPREAD_S = 600.0
"""Seconds after an epoch's begin over which identities are renewed, so that not all are at once."""

LOOK_S = 60.0
"""Seconds after which the clock is read again: it may have been set."""


class Enrolment:
    """One identity's IDENT record in one swarm; ``run`` keeps it."""

    def __init__(self, swarm: Swarm, identity: Identity, roles: Role, *, path: Path | None, region: str = "") -> None:
        """Describe what is enrolled.

        Args:
            swarm: Where; entered.
            identity: Who.
            roles: What the node does.
            path: File in which the beginning is kept; None: of an identity that lives in memory only.
            region: Where the node is, for people.
        """
        self._swarm, self._identity, self._path = swarm, identity, path
        self._roles, self._region = roles, region

    async def run(self) -> None:
        """Enrol as soon as the swarm's rules are known, and again in every epoch; returns when our p2pd has ended."""
        rules = await self._swarm.wait_for_rules()
        beginning: Beginning | None = None
        is_believed = False
        while True:
            wait_s = max(1.0, rules.epoch_s / 36)
            try:
                beginning = beginning or await self._begin(rules)
                if not _has_begun(beginning, rules):
                    logger.warning("this machine's clock is before the epoch that its identity counts from; mend it")
                    beginning = beginning if is_believed else None  # Else it was ahead when that was found.
                elif await self._enrol(beginning, rules):
                    is_believed = True
                    await self._rest(rules)
                    continue
            except DaemonDied:
                return
            except (DhtError, TimeoutError, OSError) as error:
                logger.warning("this node's identity was not enrolled: %s; trying again in a while", error)
            await asyncio.sleep(wait_s)

    async def _enrol(self, beginning: Beginning, rules: Rules) -> bool:
        epoch = rules.epoch_of(time.time())
        peer = self._identity.peer_id
        ident = Ident(peer, beginning.created_epoch, epoch, beginning.nonce, self._roles, self._region)
        return await self._swarm.store(seal(ident, self._identity, rules=rules))

    async def _rest(self, rules: Rules) -> None:
        """Wait for this identity's turn in the next epoch; that a clock is set meanwhile is seen within a minute."""
        now_s = time.time()
        due_s = now_s + self._until_next_s(rules, now_s)
        while due_s - 2 * rules.epoch_s < (now_s := time.time()) < due_s:  # noqa: ASYNC110 - a clock sets no event
            await asyncio.sleep(min(due_s - now_s, LOOK_S))

    def _until_next_s(self, rules: Rules, now_s: float) -> float:
        """Say how long until this identity's turn in the next epoch."""
        spread_s = min(MAX_SPREAD_S, rules.epoch_s / 4) * shard_of(self._identity.peer_id) / 256
        return rules.start_of(rules.epoch_of(now_s) + 1) + spread_s - now_s

    async def _begin(self, rules: Rules) -> Beginning:
        """Find since when we exist: by the file, else by the DHT, else since now."""
        peer, swarm = self._identity.peer_id, self._swarm.parameters_hash.hex()
        kept = read_beginnings(self._path, peer).get(swarm) if self._path is not None else None
        if kept is not None and kept.holds(peer, rules, time.time()):
            return kept
        beginning = await self._standing(rules) or await self._new(rules)
        if self._path is not None:
            write_beginning(self._path, peer, swarm, beginning)
        return beginning

    async def _standing(self, rules: Rules) -> Beginning | None:
        peer = self._identity.peer_id
        for record in await self._swarm.fetch(Kind.IDENT, (shard_of(peer),)):
            if isinstance(record, Ident) and record.peer == peer:
                return Beginning(record.created_epoch, record.nonce, rules.epoch_s)
        return None

    async def _new(self, rules: Rules) -> Beginning:
        epoch = rules.epoch_of(time.time())
        nonce = await asyncio.to_thread(find_proof, self._identity.peer_id, epoch, rules.proof_of_work_bits)
        return Beginning(epoch, nonce, rules.epoch_s)


def _has_begun(beginning: Beginning, rules: Rules) -> bool:
    return beginning.created_epoch <= rules.epoch_of(time.time())
