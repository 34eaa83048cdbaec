"""Puts what was judged on the DHT, as AUDIT records under the auditor's key: in batches, and what is left at the end.

Runs in the event loop of whoever audits. It knows nothing of models, nor of what was measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Self

from dht.errors import DaemonDied, DhtError
from dht.identity import Identity
from dht.records import seal
from dht.rules import Rules
from dht.swarm import Swarm
from node.client.audit_book import AuditResult
from node.client.audit_tally import AuditTally

logger = logging.getLogger(__name__)

PERIOD_S = 30.0
"""Between two publications."""
LAST_S = 5.0
"""The last one may take so long."""


class AuditPublisher:
    """An async context manager; inside it, what is entered comes to stand on the DHT.

    Args:
        swarm: entered.
        identity: signs.
        rules: of the swarm.
        clock: unix time, s.
    """

    def __init__(self, swarm: Swarm, identity: Identity, rules: Rules, clock: Callable[[], float] = time.time) -> None:
        self._swarm = swarm
        self._identity = identity
        self._rules = rules
        self._clock = clock
        self._tally = AuditTally(identity.peer_id)
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publish_again())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(TimeoutError, DhtError):
            await asyncio.wait_for(self.publish(), LAST_S)

    def enter(self, result: AuditResult) -> None:
        """Take what came of an audit."""
        self._tally.enter(result, self._rules.epoch_of(self._clock()))

    async def publish(self) -> int:
        """Publish what is new; return how many records members hold.

        Raises:
            DaemonDied: our own p2pd has ended.
        """
        async with self._turn:
            if not self._tally.has_news:
                return 0
            now_s = int(self._clock())
            audits = self._tally.take(self._rules.epoch_of(now_s), now_s)
            signed = [seal(audit, self._identity, rules=self._rules) for audit in audits]
            num_holding = [0] * len(audits)
            try:
                num_holding = await self._swarm.store_many(signed)
            finally:
                self._tally.give_back([audit for audit, num in zip(audits, num_holding, strict=True) if not num])
            return sum(num > 0 for num in num_holding)

    async def _publish_again(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.publish()
            except DaemonDied:
                return
            except DhtError as error:
                logger.warning("audits were not published: %s; trying again in a while", error)
