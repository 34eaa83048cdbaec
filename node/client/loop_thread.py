"""The client's event loop in a thread of its own, so that the synchronous API works anywhere, Jupyter included."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from node.errors import LocalError

T = TypeVar("T")


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
        if threading.current_thread() is self._thread or not self.is_running:
            coroutine.close()
            raise LocalError("The synchronous API cannot be called from its own loop thread, nor after close().")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run ``coroutine`` without waiting for it; does nothing after ``stop``."""
        if self.is_running:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        else:
            coroutine.close()

    def stop(self) -> None:
        """End the loop and its thread."""
        if not self.is_running:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
