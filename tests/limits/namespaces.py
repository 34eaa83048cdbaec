"""Two machines on one: network namespaces joined by a cable, each with a loopback and an address of its own (Linux).

Whether they can be made is found out by making one, because it takes ``ip``, root and a kernel that allows it.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machine:
    """A network namespace."""

    name: str
    address: str
    """Its IPv4 address on the cable."""

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread, and the processes that it starts meanwhile, live in the namespace."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(there)
            os.close(here)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def can_make_namespaces() -> bool:
    """Say whether ``two_machines`` works here."""
    if shutil.which("ip") is None or not Path("/proc/thread-self/ns/net").exists():
        return False
    name = f"efed{os.getpid()}probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError:
        return False
    return True


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Make two machines that reach each other, and nothing else."""
    # 198.18.0.0/15 is kept for tests of networks (RFC 2544); no such route can be on this machine already.
    machines = [Machine(f"efed{os.getpid()}{side}", f"198.18.0.{n}") for n, side in enumerate("ab", 1)]
    left, right = machines
    with contextlib.ExitStack() as exits:
        for machine in machines:
            _ip("netns", "add", machine.name)
            exits.callback(_ip, "netns", "del", machine.name)
        _ip("link", "add", "cable", "netns", left.name, "type", "veth", "peer", "name", "cable", "netns", right.name)
        for machine in machines:
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", machine.name, "link", "set", device, "up")
        yield left, right


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
