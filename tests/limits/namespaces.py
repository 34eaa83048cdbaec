"""Several machines on one: network namespaces, each with a loopback and addresses of its own (Linux).

    two_machines                     homes
    left ── cable ── right           internet (a switch, and a machine of its own)
                                      ├── router 0 ── machine 0, machine 1, ... at home 0
                                      └── router 1 ── machine 0, ...            at home 1

Routers translate addresses: a machine at home reaches the internet, and no one there reaches it. All homes use the same
private addresses, as homes do. Whether any of this can be made is found out by making it, because it takes ``ip``,
root and a kernel that allows it.
"""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.limits.translation import translate

SWITCH = "switch"
"""The device by which a namespace takes part in what it joins; it counts what is for that namespace itself only."""

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machine:
    """A network namespace."""

    name: str
    address: str
    """Its IPv4 address, on the cable or at home."""

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

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` on this machine and return what it prints."""
        return _ip("-n", self.name, *arguments)

    def bytes_carried(self, device: str) -> int:
        """Return the bytes that have gone through one of its devices, both ways."""
        (link,) = json.loads(self.ip("-s", "-j", "link", "show", "dev", device))
        return int(link["stats64"]["rx"]["bytes"]) + int(link["stats64"]["tx"]["bytes"])


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
            machine.ip("addr", "add", f"{machine.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                machine.ip("link", "set", device, "up")
        yield left, right


@dataclass(frozen=True)
class Homes:
    """An internet, and homes behind address translation."""

    internet: Machine
    routers: tuple[Machine, ...]
    """One per home; ``address`` is its address in the internet."""
    machines: tuple[tuple[Machine, ...], ...]
    """Per home."""


def can_translate_addresses() -> bool:
    """Say whether ``homes`` works here."""
    if not can_make_namespaces():
        return False
    try:
        with homes(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def homes(*num_machines: int) -> Iterator[Homes]:
    """Make an internet and homes of so many machines each; nothing of it touches this machine's own network."""
    # libp2p knows the ranges kept for tests, and treats them as private: the internet needs addresses that are public.
    with contextlib.ExitStack() as exits:
        internet = _machine(exits, "net", "44.0.0.1")
        internet.ip("link", "add", SWITCH, "type", "bridge")
        _address(internet, SWITCH, f"{internet.address}/24")
        routers, inhabitants = [], []
        for home, count in enumerate(num_machines):
            router = _machine(exits, f"r{home}", f"44.0.0.{10 + home}")
            _plug(internet, SWITCH, f"home{home}", router, "outside")
            _address(router, "outside", f"{router.address}/24")
            router.ip("link", "add", SWITCH, "type", "bridge")
            _address(router, SWITCH, "192.168.1.1/24")
            with router.inside():
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
                translate("outside")
            machines = tuple(_machine(exits, f"h{home}m{n}", f"192.168.1.{2 + n}") for n in range(count))
            for n, machine in enumerate(machines):
                _plug(router, SWITCH, f"m{n}", machine, "cable")
                _address(machine, "cable", f"{machine.address}/24")
                machine.ip("route", "add", "default", "via", "192.168.1.1")
            routers.append(router)
            inhabitants.append(machines)
        yield Homes(internet, tuple(routers), tuple(inhabitants))


def _machine(exits: contextlib.ExitStack, name: str, address: str) -> Machine:
    machine = Machine(f"efed{os.getpid()}{name}", address)
    _ip("netns", "add", machine.name)
    exits.callback(_ip, "netns", "del", machine.name)
    machine.ip("link", "set", "lo", "up")
    return machine


def _plug(near: Machine, switch: str, port: str, far: Machine, device: str) -> None:
    """Join a device of ``far`` to the switch of ``near`` by a cable."""
    _ip("link", "add", port, "netns", near.name, "type", "veth", "peer", "name", device, "netns", far.name)
    near.ip("link", "set", port, "master", switch, "up")


def _address(machine: Machine, device: str, address: str) -> None:
    machine.ip("addr", "add", address, "dev", device)
    machine.ip("link", "set", device, "up")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
