"""A thread of its own for what nobody waits for: it computes when nothing else wants to, and stops when it need not.

    event loop ──until_cancelled──> a thread that waits ──PatientThread.run──> the thread that computes
        └── is cancelled: nobody waits any more ─────────────────────────────> ``look`` raises, between two modules

Its priority stays with a thread for good, so it is never given to one of a pool that others use, too. A node that
leaves waits for its threads: so a check that takes minutes looks again and again whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LOWEST = 19

_unwanted: ContextVar[threading.Event | None] = ContextVar("_unwanted", default=None)
"""Set when nobody waits any more for what is being computed; None: somebody always does."""


async def until_cancelled(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Call in a thread, as ``asyncio.to_thread`` does; where this is cancelled, ``look`` raises in there."""
    unwanted = threading.Event()
    before = _unwanted.set(unwanted)
    try:
        return await asyncio.to_thread(call, *args, **named)
    finally:
        unwanted.set()
        _unwanted.reset(before)


def look() -> None:
    """Go on if somebody still waits for what this thread computes.

    Raises:
        CancelledError: that of ``concurrent.futures``; nobody does.
    """
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted.is_set():
        raise CancelledError


class PatientThread:
    """One thread at the lowest priority that the system gives a thread, on Linux.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name, initializer=_give_way)

    def run(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Call in the thread, after what waits for it already, and wait for what comes of it.

        Raises:
            CancelledError: as ``look``.
        """

        def wanted() -> T:
            look()
            return call(*args, **named)

        return self._pool.submit(copy_context().run, wanted).result()


def _give_way() -> None:
    """Let this thread, and those that torch starts for it, compute when nobody else wants to."""
    if sys.platform == "linux":  # Elsewhere a thread's id is no number that a priority can be given to.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
