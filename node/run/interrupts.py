"""What Ctrl-C does before a command has begun: imports take seconds, and libraries bear no exception amid them.

Main thread only; imports nothing heavy itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(INTERRUPTED)  # nothing has been opened that would have to be closed


@contextlib.contextmanager
def leaving_at_once_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process inside the ``with``, until ``raise_on_interrupt`` is called."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there is something to close."""
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
