"""Read a window of receipts into a workbook: at first with the help of snapshots, then only what may have changed.

This file does not know what the work is worth. It runs on the event loop.
"""

import random
from collections.abc import Sequence

from dht.receipts.checking import SignatureChecker
from dht.receipts.newcomer import begin, complete
from dht.receipts.reader import collect_receipts, known_providers
from dht.records import SignedRecord
from dht.standing.workbook import Workbook
from dht.swarm import Swarm
from dht.work import Receipt

NUM_UNSETTLED = 2
"""Newest epochs whose receipts are read again, because they may still come."""


class WorkReader:
    """What has been read so far."""

    def __init__(self, swarm: Swarm, bootstraps: Sequence[str], rng: random.Random) -> None:
        """Begin with nothing.

        Args:
            swarm: Where.
            bootstraps: Peer ids whose snapshots are asked for first.
            rng: Draws what snapshots are compared at.
        """
        self._swarm = swarm
        self._bootstraps = bootstraps
        self._rng = rng
        self._providers: set[str] = set()
        self._settled = -1  # newest epoch that has been read since it settled
        self.book = Workbook()

    @property
    def peers(self) -> frozenset[str]:
        """All who may have worked, or were worked for."""
        return self.book.peers | self._providers

    async def read(self, window: range, checker: SignatureChecker) -> None:
        """Read what may have changed.

        Args:
            window: Epochs, oldest first; the last one is the present.
            checker: Checks signatures.

        Raises:
            DaemonDied: Our own p2pd has ended.
        """
        if self._settled < 0:
            beginning = await begin(self._swarm, self._bootstraps, window, checker, self._rng)
            async for signed in complete(self._swarm, beginning, checker):
                self._take(signed)
            self._providers = set(beginning.providers)
        else:
            await self._read_again(window, checker)
        self._settled = window[-1] - NUM_UNSETTLED
        self.book.drop_before(window[0])

    async def _read_again(self, window: range, checker: SignatureChecker) -> None:
        known = await known_providers(self._swarm)
        settled = [epoch for epoch in window if epoch <= self._settled]
        unsettled = [epoch for epoch in window if epoch > self._settled]
        async for signed in collect_receipts(self._swarm, sorted(known - self._providers), settled, checker=checker):
            self._take(signed)
        self._providers |= known
        async for signed in collect_receipts(self._swarm, sorted(self._providers), unsettled, checker=checker):
            self._take(signed)

    def _take(self, signed: SignedRecord) -> None:
        if isinstance(signed.record, Receipt):
            self.book.add(signed.record)
