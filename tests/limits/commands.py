"""One ``efedllm`` command run to its end, with what it said and what it left running."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIVE_UP_S = 120.0
VANISH_S = 5.0
"""How long a killed child may take to disappear from the process table."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[str]
    """Command lines of processes, and directories, that it should have taken with it."""

    @property
    def sentence(self) -> str:
        """The one line on stderr; fails when there are more, or fewer."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def run(arguments: Sequence[str], home: Path, *, prefix: Sequence[str] = (), **environment: str) -> Outcome:
    """Run a command with the home directory ``home``; ``prefix`` is a program that runs it."""
    started_s = time.monotonic()
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "node", *arguments],
        env=environment_of(home, environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=GIVE_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    seconds = time.monotonic() - started_s
    return Outcome(process.returncode, out, err, seconds, left_by(process.pid, home))


def environment_of(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command; the hub is a closed port unless ``extra`` names one."""
    return {
        **os.environ,
        "EFEDLLM_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "hub"),
        **extra,
    }


def left_by(pid: int, home: Path) -> list[str]:
    """List what a command that has ended left behind: processes that know its home or its sockets, and the sockets."""
    deadline_s = time.monotonic() + VANISH_S
    while (left := [*_processes_of(pid, home), *_directories_of(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return left


def _processes_of(pid: int, home: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                ours = f"EFEDLLM_HOME={home}\0".encode() in (entry / "environ").read_bytes()
                if ours or f"efedllm-p2pd-{pid}-".encode() in line:
                    found.append(line.replace(b"\0", b" ").decode())
    return found


def _directories_of(pid: int) -> list[str]:
    return [str(path) for path in Path(tempfile.gettempdir()).glob(f"efedllm-p2pd-{pid}-*")]


def resident_bytes(pid: int) -> int:
    """Return the memory of a running process that is in RAM (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
