"""The engine: one compute thread beside the event loop, fed by a bounded queue.

Work is a callable that runs in the thread and returns a value; exceptions cross back as values (an
unexpected one as ``ComputeFailed``, without its inner text: that goes to the log, not to a peer). It knows nothing of
tensors, sessions or peers: whoever submits decides what a piece of work is.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from node.errors import ComputeFailed, NodeError, Refused

T = TypeVar("T")

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 5e-4
"""How long one Python thread may hold the interpreter: short, so that the loop answers while the thread computes."""


class Engine:
    """Runs submitted work in order in a thread of its own."""

    def __init__(self, max_waiting: int = 256) -> None:
        # The bound is checked in submit, in the loop's thread alone, so the faster queue without one will do.
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_leaving = False

    async def __aenter__(self) -> Self:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving = True
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Pieces of work not begun yet."""
        return self._queue.qsize()

    async def submit(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the compute thread and return its value, or raise what it raised.

        Raises:
            Refused: the queue is full, or the engine has been left; retryable.
        """
        assert self._loop is not None
        if self._is_leaving:  # Behind the end mark of the queue nothing is worked on any more.
            raise Refused("draining", "This server is leaving; choose another.", retryable=True)
        if self._queue.qsize() >= self._max_waiting:
            message = "This server has too much work waiting; try again."
            raise Refused("busy", message, retryable=True, retry_after_s=1.0)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((work, future))
        return await future

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, future = item
            if future.cancelled():
                continue
            try:
                value: Any = work()
                error: NodeError | None = None
            except NodeError as caught:
                value, error = None, caught
            except Exception as caught:  # the border of the compute thread: every failure is a value
                logger.exception("Work in the compute thread failed")
                value, error = None, ComputeFailed(f"The computation failed: {type(caught).__name__}.")
            self._deliver(future, value, error)

    def _deliver(self, future: asyncio.Future[Any], value: Any, error: NodeError | None) -> None:
        def settle() -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)
