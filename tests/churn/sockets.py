"""Whose TCP connections there are on this machine, read from Linux's ``/proc``. Runs in the caller's thread."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tests.processes import children_of

_ESTABLISHED = "01"


@dataclass(frozen=True, slots=True)
class Socket:
    """One end of an established IPv4 connection."""

    port: int
    """Of this end."""
    other_port: int
    """Of the other one."""
    inode: int


def established() -> list[Socket]:
    """Return the ends of all established IPv4 connections."""
    fields = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        Socket(int(field[1].rpartition(":")[2], 16), int(field[2].rpartition(":")[2], 16), int(field[9]))
        for field in fields
        if field[3] == _ESTABLISHED
    ]


def sockets_of(*pids: int) -> set[int]:
    """Return the inodes of the sockets that processes hold; those of processes that have ended are none."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, inode = str(entry.readlink()).partition(":[")
                    if kind == "socket":
                        inodes.add(int(inode.rstrip("]")))
    return inodes


def connections_of(pid: int) -> list[Socket]:
    """Return the established connections of a node: of its process and of its p2pd."""
    held = sockets_of(pid, *children_of(pid))
    return [end for end in established() if end.inode in held]
