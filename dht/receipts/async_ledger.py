"""Let an event loop use a ledger without waiting for the disk.

    append, append, append      event loop: each waits for its own answer
            |
    one thread, one transaction for all that have come since the last one began

It knows nothing of receipts beyond what ``ledger`` says. The methods run on one event loop, the ledger in one thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeAlias, TypeVar

from dht.errors import DhtError
from dht.receipts.ledger import Ledger
from dht.receipts.reservation_table import UnsignedEnd

MAX_BATCH = 1024
"""Receipts that one transaction takes at most."""

_T = TypeVar("_T")
_Waiting: TypeAlias = "tuple[tuple[str, bytes], asyncio.Future[bool]]"


class AsyncLedger:
    """An async context manager around a ledger; leaving it writes what is pending and closes the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._pending: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self.num_appended = 0
        """Receipts that have been written since the ledger was opened."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            await self._writer
        try:
            await self.ask(Ledger.close)
        finally:
            self._executor.shutdown(wait=False)

    @property
    def ledger(self) -> Ledger:
        """The ledger itself, for callers that may wait for the disk."""
        return self._ledger

    async def ask(self, question: Callable[[Ledger], _T]) -> _T:
        """Call ``question`` with the ledger in its thread: ``await ledger.ask(lambda held: held.newest(own))``."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, question, self._ledger)

    async def append(self, own: str, envelope: bytes) -> bool:
        """Keep a receipt; see ``Ledger.append``. It is written also where the caller is cancelled meanwhile."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending.append(((own, envelope), answer))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await answer

    async def note_unsigned_end(self, own: str, end: UnsignedEnd) -> None:
        """Remember that a session ended with work that its other side did not sign."""
        await self.ask(lambda held: held.note_unsigned_end(own, end))

    async def _write(self) -> None:
        """Write until nothing is pending; what comes during a transaction is the next one's."""
        batch: list[_Waiting] = []
        try:
            while self._pending:
                batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
                for (_, answer), outcome in zip(batch, await self._outcomes(batch), strict=True):
                    self.num_appended += outcome is True
                    if not answer.done():  # its caller may have been cancelled
                        _settle(answer, outcome)
        finally:
            self._writer = None
            for _, answer in (*batch, *self._pending):  # Some are left only where this ends by an error.
                answer.cancel()

    async def _outcomes(self, batch: list[_Waiting]) -> list[bool | DhtError]:
        try:
            return await self.ask(lambda held: held.append_all([item for item, _ in batch]))
        except DhtError as error:
            return [error] * len(batch)


class OwnReceipts:
    """What one own peer id has to publish: a ``Source`` of ``publisher``."""

    def __init__(self, ledger: AsyncLedger, own: str) -> None:
        self._ledger = ledger
        self._own = own

    async def newest_envelopes(self, since_epoch: int) -> list[bytes]:
        """Give the newest envelope of each slot of ``since_epoch`` and later ones."""
        return await self._ledger.ask(lambda held: held.newest_envelopes(self._own, since_epoch))

    @property
    def num_changes(self) -> int:
        """How many receipts have been written, of whichever own peer id."""
        return self._ledger.num_appended


def _settle(answer: "asyncio.Future[bool]", outcome: bool | DhtError) -> None:
    if isinstance(outcome, DhtError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
