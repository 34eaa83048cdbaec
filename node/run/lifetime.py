"""When a command ends: signals, a parent that goes away, and the order in which things are let go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from node.run.interrupts import raise_on_interrupt

T = TypeVar("T")

STDIN_ENDED = "end of standard input"
"""Why a command ends whose parent has gone."""


def run_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` in a uvloop event loop to its end.

    SIGTERM ends it as Ctrl-C does: ``main`` is cancelled, closes what it has opened, and KeyboardInterrupt is raised
    here. A ``main`` that wants to end otherwise waits in ``until_told_to_stop``.
    """
    raise_on_interrupt()

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(run())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


def end_on_terminate_as_on_interrupt() -> None:
    """Let SIGTERM raise KeyboardInterrupt, so that a command without a loop of its own closes what it has opened."""
    raise_on_interrupt()
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def end_with_stdin() -> None:
    """Let the end of standard input end this process as SIGTERM does: a parent that goes away takes us with it.

    For a command without a loop of its own; what comes on standard input is thrown away.
    """
    descriptor = sys.stdin.fileno()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="efedllm-stdin", daemon=True).start()


def stop_words() -> asyncio.Queue[str]:
    """Return a queue of the names of SIGINT and SIGTERM, as often as they come, until the loop is closed."""
    words: asyncio.Queue[str] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, words.put_nowait, number.name)
    return words


async def until_stdin_ends() -> str:
    """Wait for the end of standard input; return ``STDIN_ENDED``."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    ended: asyncio.Future[str] = loop.create_future()
    os.set_blocking(descriptor, False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(descriptor, 4096) and not ended.done():
                loop.remove_reader(descriptor)
                ended.set_result(STDIN_ENDED)

    loop.add_reader(descriptor, read)
    try:
        return await ended
    finally:
        loop.remove_reader(descriptor)


async def until_told_to_stop(*, exit_with_stdin: bool) -> str:
    """Wait for SIGINT, SIGTERM or, if asked for, the end of standard input; return which it was.

    A parent that keeps our standard input open takes us with it when it dies, however it dies.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()

    def tell(reason: str) -> None:
        if not told.done():
            told.set_result(reason)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, tell, number.name)
    ending = asyncio.create_task(until_stdin_ends()) if exit_with_stdin else None
    try:
        await asyncio.wait({told, ending} if ending else {told}, return_when=asyncio.FIRST_COMPLETED)
        return told.result() if told.done() else STDIN_ENDED
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        if ending is not None:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
