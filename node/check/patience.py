"""A thread of its own for what nobody waits for: it computes when nothing else wants to.

Its priority stays with a thread for good, so it is never given to one of a pool that others use, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_LOWEST = 19


def patient_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor of one thread at the lowest priority that the system gives a thread, on Linux."""
    return ThreadPoolExecutor(1, name, initializer=_give_way)


def _give_way() -> None:
    """Let this thread, and those that torch starts for it, compute when nobody else wants to."""
    if sys.platform == "linux":  # Elsewhere a thread's id is no number that a priority can be given to.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
