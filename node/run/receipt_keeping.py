"""What a node does for its receipts while it runs: ledger, publication, its own record, an eye on contradictions.

Runs in the event loop; the ledger has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from pathlib import Path
from typing import Self

from dht.beginnings import BEGINNINGS_FILE
from dht.enrolment import Enrolment
from dht.errors import DhtError
from dht.ident import Role
from dht.identity import Identity
from dht.receipts.async_ledger import AsyncLedger, OwnReceipts
from dht.receipts.equivocations import EquivocationWatch
from dht.receipts.ledger import Ledger
from dht.receipts.publisher import ReceiptPublisher
from dht.rules import Rules
from dht.swarm import Swarm
from node.config import LEDGER
from node.model.checkpoint import Checkpoint
from node.run.duties import Duty, in_background
from node.run.first_numbers import LedgerByClock
from node.run.ledger_restoring import loss_of, restore
from node.serve.contracts import Contracts

logger = logging.getLogger(__name__)


class ReceiptKeeping:
    """An async context manager; inside it, the node's receipts are kept and published.

    Args:
        home: the node's state directory; None: everything is in memory, for an identity that lives as long.
        identity: whose receipts they are.
        swarm: entered.
        role: what the node does.
    """

    def __init__(self, home: Path | None, identity: Identity, swarm: Swarm, role: Role) -> None:
        self._home = home
        self._identity = identity
        self._swarm = swarm
        self._role = role
        self._exits = contextlib.AsyncExitStack()
        self.rules: Rules
        """Of the swarm."""
        self.ledger: AsyncLedger
        """Set inside the context, as the rules are."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            self.rules = await self._swarm.wait_for_rules()
            held = await asyncio.to_thread(self._open)
            self.ledger = await exits.enter_async_context(AsyncLedger(held))
            source = OwnReceipts(self.ledger, self._identity.peer_id)
            publisher = ReceiptPublisher(self._swarm, source, delay=random.random())  # noqa: S311 - spreads load
            await exits.enter_async_context(publisher)
            await exits.enter_async_context(EquivocationWatch(self._swarm))
            path = self._home / BEGINNINGS_FILE if self._home is not None else None
            enrolment = Enrolment(self._swarm, self._identity, self._role, path=path)
            duties: dict[str, Duty] = {
                "compacting the ledger": lambda: self._compact(held),
                "enrolling this identity": enrolment.run,
            }
            loss = await asyncio.to_thread(loss_of, held, self._home, self._identity.peer_id) if self._home else None
            if loss is not None:
                duties["restoring the ledger"] = lambda: restore(self._swarm, self.ledger, loss, self.rules)
            await exits.enter_async_context(in_background(duties))
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def _compact(self, held: Ledger) -> None:
        """Once an epoch, let the ledger drop what newer receipts stand for; others use it meanwhile."""
        while True:
            try:
                await asyncio.to_thread(held.compact, self.rules)
            except DhtError as error:
                logger.warning("the ledger was not compacted: %s", error)
            await asyncio.sleep(self.rules.epoch_s)

    def _open(self) -> Ledger:
        if self._home is None:
            return Ledger.open(None)
        held = LedgerByClock.open(self._home / LEDGER, own=self._identity.peer_id, rules=self.rules)
        held.begin(self.rules, time.time())  # The identity is locked, so no other process signs as it from this file.
        return held


async def keep_contracts(
    exits: contextlib.AsyncExitStack, home: Path, identity: Identity, swarm: Swarm, role: Role, checkpoint: Checkpoint
) -> Contracts:
    """Keep the receipts of whoever works for others with one model; return what it agrees on with them.

    Args:
        exits: ends what is begun here.
        home: the node's state directory.
        identity: whose receipts they are.
        swarm: entered.
        role: what the node does.
        checkpoint: the model, which the ledger's readers are told the name of.
    """
    keeping = await exits.enter_async_context(ReceiptKeeping(home, identity, swarm, role))
    manifest, name = checkpoint.manifest32, checkpoint.name
    await keeping.ledger.ask(lambda held: held.note_model(manifest, name))
    contracts = Contracts(identity, keeping.ledger, keeping.rules)
    exits.push_async_callback(contracts.drained)
    return contracts
