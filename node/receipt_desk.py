"""Where one peer signs, and keeps what both have signed: its key, the numbers written ahead, and its ledger.

Runs in an event loop, the ledger in a thread of its own. The event loop waits for the disk only where a number is
wanted that nobody has told the desk to expect. What may be signed is decided by ``agreement``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from dht.errors import DhtError
from dht.identity import Identity
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.work import Slot

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ReceiptDesk:
    """Signs, reserves and keeps for one peer.

    Args:
        identity: signs.
        ledger: keeps what both have signed.
    """

    def __init__(self, identity: Identity, ledger: AsyncLedger) -> None:
        self.own = identity.peer_id
        """The peer's id."""
        self.sign = identity.sign
        """Signs a domain and a body with the peer's key."""
        self._ledger = ledger
        self._working: set[asyncio.Task[None]] = set()

    async def ask(self, question: Callable[[Ledger], T]) -> T:
        """Call ``question`` with the ledger, in the ledger's thread.

        Raises:
            DhtError: what the ledger says.
        """
        return await self._ledger.ask(question)

    def reserve(self, slot: Slot, seq: int) -> int:
        """Return the number to sign with next in a slot, ``seq`` or a later one; it is on the disk.

        Raises:
            LedgerNotWritten: the disk does not take it: nothing may be signed.
            SeqsSpent: the lane has no numbers left in this epoch.
        """
        held = self._ledger.ledger
        taken = held.reserve_in_memory(self.own, slot, seq)
        if taken is None:
            return held.reserve(self.own, slot, seq)
        if held.needs_numbers(self.own, slot):
            self.expect(slot)
        return taken

    def expect(self, slot: Slot) -> None:
        """Have numbers of a slot written ahead, without waiting: something will be signed there soon."""
        if self._ledger.ledger.needs_numbers(self.own, slot):
            self._later(self._reserve_ahead(slot))

    async def _reserve_ahead(self, slot: Slot) -> None:
        try:
            await self._ledger.ask(lambda held: held.reserve_ahead(self.own, slot))
        except DhtError as error:  # Who signs there next is told.
            logger.debug("no numbers were written ahead: %s", error)

    def keep(self, envelopes: Iterable[bytes]) -> None:
        """Put receipts that both have signed into the ledger, without waiting."""
        for envelope in envelopes:
            self._later(self._append(envelope))

    async def _append(self, envelope: bytes) -> None:
        try:
            await self._ledger.append(self.own, envelope)
        except DhtError as error:
            logger.warning("a receipt was not kept: %s", error)

    def note(self, what: Callable[[Ledger], None]) -> None:
        """Have something written into the ledger, without waiting."""
        self._later(self.noted(what))

    async def noted(self, what: Callable[[Ledger], None]) -> None:
        """Write something into the ledger; what it does not take is logged, for people."""
        try:
            await self._ledger.ask(what)
        except DhtError as error:
            logger.warning("how a session ended was not noted: %s", error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def drained(self) -> None:
        """Wait until the ledger has taken everything."""
        await asyncio.gather(*self._working, return_exceptions=True)
