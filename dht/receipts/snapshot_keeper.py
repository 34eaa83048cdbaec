"""Sum up each epoch when it has ended: read the window's receipts from the DHT, publish and serve a snapshot of them.

    epoch      |------------ e ------------|------------ e + 1 ----------
    snapshot                                  x  of the window up to e

Late receipts of an epoch come within two periods of publication after its end; so long it is waited for. From one
epoch to the next only what may have changed is read again. This file does not know who reads snapshots. It runs on the
event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from dht.hardening.duty import take_turn
from dht.identity import Identity
from dht.receipts.checking import SignatureChecker
from dht.receipts.publisher import period_s
from dht.receipts.reader import collect_receipts, known_providers
from dht.receipts.snapshots import MAX_RECEIPTS, SnapshotServer, read_record
from dht.rules import Rules
from dht.snapshot import NO_SCORES, digest_of
from dht.swarm import Swarm

logger = logging.getLogger(__name__)

MAX_KEPT = MAX_RECEIPTS
"""Receipts of a snapshot, which are held twice; where there are more, it begins with a later epoch."""

LATE_PERIODS = 2
"""Periods of publication after an epoch's end in which its receipts may still come."""

NUM_UNSETTLED = 2
"""Newest epochs of a snapshot that are read again, whoever has been read before."""

Scoring = Callable[[range, Collection[bytes], Collection[str]], Awaitable[bytes]]
"""From a window, its receipts and all known providers to the digest of scores, 32 bytes."""


def newest_ended(rules: Rules, now_s: float) -> int:
    """Name the newest epoch whose receipts have all had time to come; -1: none."""
    return rules.epoch_of(now_s - LATE_PERIODS * period_s(rules)) - 1


def window_up_to(rules: Rules, epoch: int) -> range:
    """Name the epochs up to ``epoch`` whose receipts still stand when it has ended."""
    return range(max(0, epoch + 1 - rules.window_epochs), epoch + 1)


class SnapshotKeeper:
    """One node's snapshots; ``run`` ends by cancellation, or when our p2pd has ended."""

    def __init__(
        self,
        swarm: Swarm,
        identity: Identity,
        *,
        clock: Callable[[], float] = time.time,
        scores: Scoring | None = None,
    ) -> None:
        """Describe who sums up.

        Args:
            swarm: Where; entered.
            identity: Who vouches.
            clock: Unix seconds.
            scores: Computes the digest of the scores that follow; None: none is published.
        """
        self._swarm = swarm
        self._clock = clock
        self._scores = scores
        self._server = SnapshotServer(swarm, identity)
        self._serves = False
        self._read: set[str] = set()  # providers that have been read
        self._kept: dict[int, set[bytes]] = {}  # by epoch: envelopes
        self.epoch = -1
        """Newest epoch that has been summed up."""

    async def run(self) -> None:
        """Serve snapshots, and make one when an epoch has ended."""
        rules = await self._swarm.wait_for_rules()
        while True:
            if not await take_turn(self._serve_or_sum_up(rules), "making a snapshot of receipts"):
                return
            await asyncio.sleep(period_s(rules))

    async def _serve_or_sum_up(self, rules: Rules) -> None:
        if not self._serves:  # A node that starts has other things to do than to read receipts.
            await self._server.start()
            self._serves = True
        else:
            await self.sum_up(rules)

    async def sum_up(self, rules: Rules) -> bool:
        """Make the snapshot that is due; say whether one was.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        epoch = newest_ended(rules, self._clock())
        if epoch <= self.epoch:
            return False
        window = await self._collect(window_up_to(rules, epoch))
        if window:
            await self._publish(window)
        else:
            logger.warning("epoch %d has more than %d receipts; no snapshot was made of it", epoch, MAX_KEPT)
        self.epoch = epoch
        return True

    async def _publish(self, window: range) -> None:
        envelopes = [envelope for each in window for envelope in self._kept[each]]
        standing = await read_record(self._swarm, self._swarm.peer_id, window[-1])
        if standing is not None and standing.digest != await asyncio.to_thread(digest_of, envelopes):
            # Made before a restart; it cannot be replaced, and nothing else may be served as what it names.
            logger.warning("a snapshot of other receipts stands for epoch %d; the next one is served again", window[-1])
            return
        scores = standing.scores if standing is not None else await self._scored(window, envelopes)
        await self._server.publish_envelopes(window, envelopes, scores)

    async def _scored(self, window: range, envelopes: Collection[bytes]) -> bytes:
        return NO_SCORES if self._scores is None else await self._scores(window, envelopes, self._read)

    async def _collect(self, window: range) -> range:
        """Read what has not been read, newest epoch first; say which of the epochs there is room for."""
        providers = await known_providers(self._swarm)
        fresh, known = providers - self._read, providers | self._read
        room = MAX_KEPT
        kept: dict[int, set[bytes]] = {}
        async with SignatureChecker() as checker:
            for epoch in reversed(window):
                is_settled = epoch in self._kept and epoch <= window[-1] - NUM_UNSETTLED
                found = set(self._kept[epoch]) if is_settled else set()
                reading = collect_receipts(
                    self._swarm, sorted(fresh if is_settled else known), [epoch], checker=checker
                )
                async with contextlib.aclosing(reading):
                    async for signed in reading:
                        found.add(signed.envelope)
                        if len(found) > room:
                            break
                if len(found) > room:
                    break
                room -= len(found)
                kept[epoch] = found
        self._kept, self._read = kept, known
        return range(window[-1] + 1 - len(kept), window[-1] + 1)
