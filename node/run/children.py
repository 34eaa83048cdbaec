"""Start our own commands as child processes, wait until they are ready, and end them for certain.

A child ends when told to (SIGTERM), when its standard input ends, which the operating system sees to when we die
(``--exit-with-stdin``), and by SIGKILL when it does neither in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.config import child_environment
from node.errors import UnavailableError

_STOP_TIMEOUT_S = 10.0


class ChildFailed(UnavailableError):
    """A child process ended, or stayed silent, before it was ready."""


class Child:
    """One running ``efedllm`` command; an async context manager."""

    def __init__(
        self, arguments: Sequence[str], home: Path, *, extra_environment: Mapping[str, str] | None = None
    ) -> None:
        self._arguments = list(arguments)
        self._environment = {**child_environment(home), **(extra_environment or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._errors: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "node",
            *self._arguments,
            "--events",
            "json",
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on the terminal is ours to pass on, in order
            limit=2**20,
        )
        self._reading = asyncio.create_task(self._read_errors())
        return self

    async def _read_errors(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._errors = [*self._errors[-19:], line.decode(errors="replace").rstrip()]

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def next_event(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next event that the child writes, or None when it has ended.

        Raises:
            ChildFailed: no event within ``timeout_s``.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self._process.stdout.readline():
                    with contextlib.suppress(ValueError):
                        event = json.loads(line)
                        if isinstance(event, dict) and "event" in event:
                            return event
        except TimeoutError:
            raise ChildFailed(f"`efedllm {self._arguments[0]}` said nothing for {timeout_s:.0f} s.") from None
        return None

    async def ready(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the child's ``ready`` event and return it.

        Raises:
            ChildFailed: it ended first; the message has its last words.
        """
        async with asyncio.timeout(timeout_s):
            while (event := await self.next_event()) is not None:
                if event["event"] == "ready":
                    return event
        raise ChildFailed(f"`efedllm {self._arguments[0]}` ended at once: {await self.last_words()}")

    async def last_words(self) -> str:
        """Return the last line that the ended child wrote for people."""
        if self._reading is not None:
            await self._reading
        return self._errors[-1] if self._errors else "it said nothing"

    async def wait(self) -> int:
        """Wait until the child has ended and return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self.stop())

    async def stop(self) -> None:
        """End the child and wait for it; doing so twice is fine."""
        process = self._process
        assert process is not None
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reading is not None:
            await self._reading


class Children:
    """Child processes that are ended all at once; an async context manager."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    async def start(self, arguments: Sequence[str], home: Path) -> Child:
        """Start the command ``arguments`` with the state directory ``home``."""
        child = await Child(arguments, home).__aenter__()
        self._started.append(child)
        return child

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.gather(*(child.stop() for child in self._started)))
