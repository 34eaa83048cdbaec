"""Check the signatures of many records: few of them here, many in worker processes.

A signature costs a tenth of a millisecond, and Python checks one at a time in a process. The workers are started when
many have come, know nothing but keys and signatures, and hand back one truth value for each record; the bounds of its
fields are checked by whoever decodes it. They end with the context. This file does no network I/O. It runs on the event
loop; what is checked here is checked in a thread beside it.
"""

import asyncio
import hashlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Self

from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.receipts.signatures import SignatureJob, are_signed
from dht.rules import Rules
from dht.validation import RecordValidator, parse_envelope

NUM_WORKERS = 2
"""Worker processes."""

MANY = 2048
"""Records after which workers are worth their start, which takes half a second."""

PART = 512
"""Records that go to a worker at once."""


def job_of(envelope: bytes, rules: Rules) -> SignatureJob | None:
    """Say what is to be checked of an envelope; None where it is no record, or one that nobody signs."""
    try:
        opened, placed = parse_envelope(envelope, rules)
    except BadRecord:
        return None
    authors = tuple(map(peer_id_to_bytes, placed.record.authors))
    return (opened.kind, opened.body, authors, opened.signatures) if authors else None


class SignatureChecker:
    """An async context manager, inside which signatures are checked without holding up the event loop."""

    def __init__(self, num_workers: int = NUM_WORKERS, many: int = MANY) -> None:
        """Describe the workers.

        Args:
            num_workers: How many, when they are started.
            many: Records after which they are.
        """
        self._num_workers = num_workers
        self._many = many
        self._num_checked = 0
        self._pool: Executor | None = None
        self._turns = asyncio.Semaphore(2 * num_workers)
        self._pending: dict[bytes, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pool is not None:
            await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    @property
    def has_workers(self) -> bool:
        """Say whether processes have been started."""
        return self._pool is not None

    async def check(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        """Say of each record whether all its authors signed it."""
        self._num_checked += len(jobs)
        if self._pool is None and self._num_checked >= self._many:
            # Spawned, not forked: a fork of a process with threads and sockets is not safe.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_workers, mp_context=context)
        parts = await asyncio.gather(
            *(self._check_part(jobs[start : start + PART]) for start in range(0, len(jobs), PART))
        )
        return [verdict for part in parts for verdict in part]

    async def _check_part(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        async with self._turns:
            return await asyncio.get_running_loop().run_in_executor(self._pool, are_signed, jobs)

    async def forestall(self, validator: RecordValidator, envelopes: Sequence[bytes]) -> None:
        """Let a validator remember those of many envelopes whose signatures are good; each is checked once."""
        waiting: set[asyncio.Task[None]] = set()
        fresh: list[tuple[bytes, bytes]] = []
        for envelope in envelopes:
            digest = hashlib.sha256(envelope).digest()
            if digest in self._pending:
                waiting.add(self._pending[digest])
            elif not validator.remembers(envelope):
                fresh.append((digest, envelope))
        if fresh:
            task = asyncio.get_running_loop().create_task(self._remember(validator, [each for _, each in fresh]))
            waiting.add(task)
            self._pending.update((digest, task) for digest, _ in fresh)
            task.add_done_callback(lambda _: [self._pending.pop(digest, None) for digest, _ in fresh])
        await asyncio.gather(*waiting)

    async def _remember(self, validator: RecordValidator, envelopes: Sequence[bytes]) -> None:
        jobs = {envelope: job_of(envelope, validator.rules) for envelope in envelopes}
        known = [(envelope, job) for envelope, job in jobs.items() if job is not None]
        verdicts = await self.check([job for _, job in known])
        for (envelope, _), is_good in zip(known, verdicts, strict=True):
            if is_good:
                validator.remember(envelope)
