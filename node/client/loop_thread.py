"""The client's event loop in a thread of its own, so that the synchronous API works anywhere, Jupyter included."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from node.errors import LocalError

T = TypeVar("T")


class Reply:
    """One value or error on its way from the loop thread to the caller's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Hand over the outcome; only the first one counts."""
        self._queue.put((value, error))

    def wait(self) -> Any:
        """Wait for the outcome and return or raise it."""
        value, error = self._queue.get()
        if error is not None:
            raise error
        return value


class LoopThread:
    """Owns one event loop; callers in other threads hand it coroutines and wait for their values."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="efedllm-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def is_running(self) -> bool:
        """Whether coroutines can still be handed over."""
        return self._thread.is_alive() and not self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` in the loop and return its value; a KeyboardInterrupt here cancels it there.

        Raises:
            LocalError: called from the loop itself, or after ``stop``.
        """
        if not self._can_be_called():
            coroutine.close()
            raise _misuse()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, start: Callable[[Reply], None]) -> Any:
        """Call ``start(reply)`` in the loop and wait until somebody there settles ``reply``: a cheaper ``run``.

        Raises:
            LocalError: called from the loop itself, or after ``stop``.
        """
        if not self._can_be_called():
            raise _misuse()
        reply = Reply()

        def begin() -> None:
            try:
                start(reply)
            except BaseException as error:
                reply.settle(None, error)  # The caller waits: a failure must not be left in the loop.
                raise

        self._loop.call_soon_threadsafe(begin)
        return reply.wait()

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call ``act`` in the loop without waiting for it; does nothing after ``stop``."""
        if self.is_running:
            self._loop.call_soon_threadsafe(act)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run ``coroutine`` without waiting for it; does nothing after ``stop``."""
        if self.is_running:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        else:
            coroutine.close()

    def _can_be_called(self) -> bool:
        return threading.current_thread() is not self._thread and self.is_running

    def stop(self) -> None:
        """End the loop and its thread."""
        if not self.is_running:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _misuse() -> LocalError:
    return LocalError("The synchronous API cannot be called from its own loop thread, nor after close().")
