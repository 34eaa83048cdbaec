"""Check the signatures of many records: few of them here, many in worker processes.

A signature costs a tenth of a millisecond, and Python checks one at a time in a process. The workers are started when
many have come, know nothing but keys and signatures, and hand back one truth value for each record; the bounds of its
fields are checked by whoever decodes it. They end with the context. This file does no network I/O. It runs on the event
loop; what is checked here is checked in a thread beside it.
"""

import asyncio
import contextlib
import hashlib
import subprocess
from collections.abc import Sequence
from typing import Self

from dht.errors import BadRecord
from dht.receipts.cosigned import job_of
from dht.receipts.signatures import SignatureJob, are_signed, command, pack_jobs
from dht.rules import Rules
from dht.validation import RecordValidator, parse_envelope

NUM_WORKERS = 2
"""Worker processes."""

MANY = 2048
"""Records after which workers are worth their start, which takes a fifth of a second."""

PART = 512
"""Records that go to a worker at once."""


def job_in(envelope: bytes, rules: Rules) -> SignatureJob | None:
    """Say what is to be checked of an envelope; None where it is no record, or one that nobody signs."""
    try:
        opened, placed = parse_envelope(envelope, rules)
    except BadRecord:
        return None
    return job_of(opened, placed.record) if placed.record.authors else None


class _Worker:
    """A process that checks signatures, one part at a time; a new one takes the place of one that has ended."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Begin the process, if none runs."""
        if self._process is None or self._process.returncode is not None:
            program, *arguments = command()
            self._process = await asyncio.create_subprocess_exec(
                program, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )

    async def check(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        """Say of each record whether all its authors signed it; here when the process ends or cannot be begun."""
        try:
            return await self._ask(jobs)
        except (OSError, RuntimeError, asyncio.IncompleteReadError):  # uvloop raises RuntimeError for a broken pipe
            await self.stop()
            return await asyncio.to_thread(are_signed, jobs)
        except BaseException:  # its answer, which nobody waits for, must not be taken for the next one's
            await self.stop()
            raise

    async def _ask(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pack_jobs(jobs))
        await self._process.stdin.drain()
        return [verdict == 1 for verdict in await self._process.stdout.readexactly(len(jobs))]

    async def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
            await process.wait()


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
        self._workers: list[_Worker] = []
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
        self._pending: dict[bytes, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pending = set(self._pending.values())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)  # They use the workers.
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    @property
    def has_workers(self) -> bool:
        """Say whether so many have come that processes check them."""
        return bool(self._workers)

    async def check(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        """Say of each record whether all its authors signed it."""
        self._num_checked += len(jobs)
        if self._num_checked < self._many:
            return await asyncio.to_thread(are_signed, jobs)
        while len(self._workers) < self._num_workers:
            self._workers.append(_Worker())
            self._idle.put_nowait(self._workers[-1])
        starts = range(0, len(jobs), PART)
        parts = await asyncio.gather(*(self._check_part(jobs[start : start + PART]) for start in starts))
        return [verdict for part in parts for verdict in part]

    async def _check_part(self, jobs: Sequence[SignatureJob]) -> list[bool]:
        worker = await self._idle.get()
        try:
            return await worker.check(jobs)
        finally:
            self._idle.put_nowait(worker)

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
        # Several readers wait for one check: one that is cancelled must not cancel it for the others.
        await asyncio.gather(*(asyncio.shield(task) for task in waiting))

    async def _remember(self, validator: RecordValidator, envelopes: Sequence[bytes]) -> None:
        jobs = {envelope: job_in(envelope, validator.rules) for envelope in envelopes}
        known = [(envelope, job) for envelope, job in jobs.items() if job is not None]
        verdicts = await self.check([job for _, job in known])
        for (envelope, _), is_good in zip(known, verdicts, strict=True):
            if is_good:
                validator.remember(envelope)
