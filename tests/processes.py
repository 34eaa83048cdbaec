"""Real ``efedllm`` processes for tests: started, waited for by their ``ready`` event, and ended by their own id."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.forked import Forked

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0


class NodeProcess:
    """One running ``efedllm`` command with ``--events json``; a node ends when this process does, however it ends.

    Args:
        arguments: the command and its arguments.
        home: where it keeps its state.
        environment: further variables; with any, the node is run by a fresh interpreter, as by another program.
        program: the module that runs it, and what that takes before the command.
        is_forked: whether it is forked from a process that has imported the libraries: not where it shall inherit what
            this thread has become, as its network namespace.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        environment: Mapping[str, str] | None = None,
        *,
        program: Sequence[str] = ("node",),
        is_forked: bool = True,
    ) -> None:
        self.arguments = list(arguments)
        self.home = home
        bound = ["--exit-with-stdin"] if arguments[0] in ("bootstrap", "serve", "verify") else []
        words = [*program, *arguments, *bound, "--events", "json"]
        variables = {**os.environ, "EFEDLLM_HOME": str(home), "OMP_NUM_THREADS": "1", **(environment or {})}
        can_fork = is_forked and not environment and list(program) == ["node"]  # Others change what is imported.
        self._process = Forked(words, variables) if can_fork else _fresh(words, variables)
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.put(json.loads(line))
        self.events.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self.errors.extend(line.rstrip("\n") for line in self._process.stderr)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def ready(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Return the ``ready`` event; fail with what the process said when it ends first."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            event = self.events.get(timeout=max(0.0, deadline_s - time.monotonic()))
            if event is None:
                self._process.wait(STOP_TIMEOUT_S)
                raise AssertionError(f"{self.arguments} ended with {self.returncode}: {self.errors}")
            if event["event"] == "ready":
                return event

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        code = self._process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def stop(self) -> int:
        """End the process politely, or by force when it does not listen; close its pipes."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        return code


def _fresh(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def bootstrap(home: Path, *extra: str, private: bool = True) -> Iterator[tuple[NodeProcess, str]]:
    """Run a bootstrap; yield it with its join code."""
    process = NodeProcess(["bootstrap", *(["--private"] if private else []), *extra], home)
    try:
        yield process, process.ready()["join"]
    finally:
        process.stop()


@contextlib.contextmanager
def servers(
    model: Path | str, join: str, spans: Sequence[tuple[int, int]], home: Path, *extra: str
) -> Iterator[list[NodeProcess]]:
    """Run one server per span, started at once; yield them when all are ready."""
    started = [
        NodeProcess(
            ["serve", str(model), "--join", join, "--blocks", f"{start}:{end}", "--device", "cpu", *extra],
            home / f"server-{start}-{end}",
        )
        for start, end in spans
    ]
    try:
        for process in started:
            process.ready()
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.signal(signal.SIGTERM)
        with contextlib.ExitStack() as exits:
            for process in started:
                exits.callback(process.stop)


def run_command(
    arguments: Sequence[str], home: Path, *, timeout_s: float = 120.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one ``efedllm`` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env={**os.environ, "EFEDLLM_HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def children_of(pid: int) -> list[int]:
    """Return the ids of the direct children of ``pid`` (Linux)."""
    children: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # It ended just now.
            children += map(int, thread.read_text().split())
    return children


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie (Linux)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
