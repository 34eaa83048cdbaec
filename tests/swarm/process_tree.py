"""Which processes a process has started, and whether they are gone. Linux: it reads ``/proc``."""

import os
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from tests.processes import children_of, is_running


def descendants_of(pid: int) -> dict[int, str]:
    """Return id and command line of every process below ``pid``."""
    found: dict[int, str] = {}
    waiting = children_of(pid)
    while waiting:
        child = waiting.pop()
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            waiting.extend(children_of(child))
        except OSError:
            continue  # It ended just now.
    return found


def left_after(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait until all of ``pids`` have ended, or for ``timeout_s``; return those that still run."""
    deadline_s = time.monotonic() + timeout_s
    running = [pid for pid in pids if is_running(pid)]
    while running and time.monotonic() < deadline_s:
        time.sleep(0.05)
        running = [pid for pid in running if is_running(pid)]
    return running


def left_in(temporary: Path) -> list[Path]:
    """Return what nodes left behind in their directory for temporary files; torch keeps a cache of its own there."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


class MachineLoad:
    """Measures which share of this machine went to processes that are not ours, from its making on."""

    def __init__(self) -> None:
        self._busy_s, self._whole_s = _machine_seconds()
        self._ours_s = _our_seconds()

    def others_share(self) -> float:
        """Return a number from 0 (the machine was ours) to almost 1; our ended children count as ours."""
        busy_s, whole_s = _machine_seconds()
        others_s = (busy_s - self._busy_s) - (_our_seconds() - self._ours_s)
        return min(max(others_s / (whole_s - self._whole_s), 0.0), 0.95)


def _machine_seconds() -> tuple[float, float]:
    """Return seconds that all cores were busy, and seconds in all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    per_s = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - ticks[3] - ticks[4]) / per_s, sum(ticks) / per_s


def _our_seconds() -> float:
    children, own = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime
