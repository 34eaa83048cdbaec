"""Processor time of processes, read from Linux's ``/proc``. Pure reading; runs in the caller's thread."""

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the seconds, user and system, that all of ``pids`` have computed since they began."""
    return sum(_ticks(pid) for pid in pids) / _TICKS_PER_S


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def daemon_of(pid: int) -> int:
    """Return the id of the p2pd that the node ``pid`` has started."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "p2pd":
                return int(child)
    raise ProcessLookupError(f"process {pid} has started no p2pd")


def machine_seconds() -> tuple[float, float]:
    """Return seconds that this machine's cores were busy, and seconds in all, both summed over the cores."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S, sum(ticks) / _TICKS_PER_S
