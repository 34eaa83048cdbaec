"""Start a p2pd process with our arguments, and end it with us, however we end.

In place of ``P2P.create``, whose stock behaviour this mends: p2pd outlives a killed parent; Ctrl-C in a terminal
reaches p2pd before the node can say goodbye; its sockets lie in /tmp under guessable names; its own second DHT and a
relay for strangers are always on (the latter even under -relay=0); only RSA identities can join; a failed start does
not say why.
This file does not speak to p2pd (``control`` does) nor know what a swarm is. It runs on the event loop.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hivemind

from dht.errors import AddressInUse, BadAddress, DaemonDied

logger = logging.getLogger(__name__)

START_S = 15.0
"""Seconds that p2pd may take to start."""

OPEN_FILES = 65536
"""Open files that we ask the system for: every stream is one socket here and one in p2pd."""

_DIRECTORY_PREFIX = "efedllm-p2pd-"

# Without a file p2pd starts from defaults in which its relay is on, and -relay=0 does not switch it off.
_CONFIG = '{"Relay": {"Enabled": false}}'

# PR_SET_PDEATHSIG (1) with SIGKILL (9) survives exec, so this process becomes p2pd and dies with its parent.
_LAUNCHER = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) and os.execv(sys.argv[2],sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How one p2pd runs."""

    listen: Sequence[str]  # multiaddrs to listen on
    announce: Sequence[str]  # multiaddrs to tell peers instead of those; empty: what p2pd finds
    reach_out: bool  # ask the router for a port that leads to ours: False on loopback


def daemon_arguments(options: DaemonOptions, key_file: Path, control: Path, config: Path) -> list[str]:
    """Write p2pd's command line, without the program.

    p2pd's own DHT stays off, for it would be a second, unguarded one. So do its relay, which would carry for strangers,
    and its AutoNAT, which would dial for them; ``membership`` does both for members.
    """
    arguments = {
        "f": str(config),
        "listen": f"/unix{control}",
        "id": str(key_file),
        "hostAddrs": ",".join(options.listen),
        "announceAddrs": ",".join(options.announce),
        "tls": 1,
        "connManager": 1,
        "idleTimeout": f"{START_S:g}s",
        "natPortMap": int(options.reach_out),
        "autonat": 0,
        "relay": 0,
        "relayService": 0,
    }
    return [f"-{name}={value}" for name, value in arguments.items() if value != ""]


class Daemon:
    """A running p2pd; made by ``launch``, ended by ``stop``."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory
        self.socket = directory / "p2pd.sock"
        self.own_socket = directory / "own.sock"
        self._last_line = ""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._output = asyncio.get_running_loop().create_task(self._read_output())

    @classmethod
    async def launch(cls, options: DaemonOptions, key_file: Path) -> "Daemon":
        """Start p2pd and wait until it listens.

        Raises:
            AddressInUse: Another program has the port.
            BadAddress: p2pd cannot listen on what it was asked to.
            DaemonDied: It did not start; the message is p2pd's last line.
        """
        for address in options.listen:
            refuse_taken(address)
        raise_file_limit()
        remove_stale_directories()
        directory = Path(tempfile.mkdtemp(prefix=f"{_DIRECTORY_PREFIX}{os.getpid()}-", dir=_socket_root()))
        program = str(Path(hivemind.__file__).parent / "hivemind_cli" / "p2pd")
        config = directory / "config.json"
        config.write_text(_CONFIG)
        command = [program, *daemon_arguments(options, key_file, directory / "p2pd.sock", config)]
        if sys.platform == "linux" and sys.executable:
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we say goodbye before p2pd ends
                env={"GOLOG_LOG_LEVEL": "error", "GOLOG_LOG_FMT": "json"},
            )
        except BaseException as error:
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, OSError):
                raise DaemonDied(f"p2pd cannot be started ({error}): install hivemind again") from error
            raise
        daemon = cls(process, directory)
        try:
            async with asyncio.timeout(START_S):
                await daemon._ready
        except TimeoutError:
            await daemon.stop()
            raise DaemonDied(f"p2pd did not start within {START_S:g} s: {daemon._last_line}") from None
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    async def stop(self) -> None:
        """End p2pd at once and remove its sockets; it has nothing to save. Safe to call twice."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # not Process.kill: it polls, and so races asyncio's reaper
        shutil.rmtree(self._directory, ignore_errors=True)
        await asyncio.shield(self._process.wait())
        await asyncio.shield(self._output)

    async def wait(self) -> str:
        """Wait until p2pd has ended; give the last line that it wrote."""
        await asyncio.shield(self._output)
        await asyncio.shield(self._process.wait())
        return self._last_line

    @property
    def pid(self) -> int:
        """Process id of p2pd."""
        return self._process.pid

    async def _read_output(self) -> None:
        """Read p2pd's lines until it ends, so that its pipe never fills."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(4096):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-4096:]
            for line in lines:
                self._last_line = line.decode(errors="replace").strip()
                logger.debug("p2pd: %s", self._last_line)
                if line.startswith(b"Peer ID:") and not self._ready.done():
                    self._ready.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(_why_not_started(self._last_line))


def _why_not_started(line: str) -> Exception:
    if "address already in use" in line:
        taken = line.rpartition("listen ")[2].partition(": bind")[0]
        return AddressInUse(f"another program listens on {taken or line}: stop it, or choose another port")
    if "multiaddr" in line or "failed to listen" in line or "cannot assign" in line:
        return BadAddress(f"p2pd cannot listen there ({line}): give an address of this machine")
    return DaemonDied(f"p2pd did not start: {line}")


def refuse_taken(address: str) -> None:
    """Refuse a TCP port on which someone listens; p2pd itself would share it with another p2pd (SO_REUSEPORT).

    Raises:
        AddressInUse: Someone listens there.
    """
    match = re.match(r"^/ip([46])/([^/]+)/tcp/(\d+)(?:/|$)", address)
    if match is None:
        return
    family = socket.AF_INET if match.group(1) == "4" else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((match.group(2), int(match.group(3))))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"another program listens on {address}: stop it, or choose another port") from None


def raise_file_limit() -> None:
    """Ask for as many open files as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def remove_stale_directories() -> None:
    """Remove the socket directories of nodes of this user that were killed."""
    for directory in _socket_root().glob(f"{_DIRECTORY_PREFIX}*-*"):
        owner = directory.name.removeprefix(_DIRECTORY_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError, ValueError):
            if directory.stat().st_uid != os.getuid():
                continue
            try:
                os.kill(int(owner), 0)
            except ProcessLookupError:
                shutil.rmtree(directory, ignore_errors=True)


def _socket_root() -> Path:
    """Give a short directory: a unix socket's path may have about 100 characters."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) < 60 else Path("/tmp")  # noqa: S108 - the directory inside is made with mode 0700
