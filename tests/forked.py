"""Nodes that start in a tenth of the time: forked from a process that has imported torch and transformers already.

A node takes five seconds of a core to import its libraries, and this suite starts hundreds. Python's own fork server
imports them once, while it has one thread, and every node is forked from there; what it does then, it does as any
other process: it has its own files, its own session, its own p2pd. Commands whose first words are what a test is about,
or that need another environment from the start, are run by a fresh interpreter instead.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import IO

import pytest

_PRELOADED = [
    "node.run.server",
    "node.run.bootstrap",
    "node.client.distributed_model",
    "transformers.models.llama.modeling_llama",
]


class Forked:
    """A module that runs as a script, in the shape of ``subprocess.Popen`` with three pipes in text mode.

    Args:
        arguments: the module's name, and its own arguments.
        environment: all of its variables.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        _start_server()
        theirs_in, ours_in = context.Pipe(duplex=False)
        ours_out, theirs_out = context.Pipe(duplex=False)
        ours_err, theirs_err = context.Pipe(duplex=False)
        theirs = (theirs_in, theirs_out, theirs_err)
        self._process = context.Process(target=_run, args=(list(arguments), dict(environment), theirs), daemon=True)
        self._process.start()
        for end in theirs:
            end.close()
        self.stdin = _as_text(ours_in, "w")
        self.stdout = _as_text(ours_out, "r")
        self.stderr = _as_text(ours_err, "r")

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in ``timeout`` seconds.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("a forked node", timeout or 0.0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        self.send_signal(signal.SIGKILL)


def _start_server() -> None:
    """Start the fork server, if it does not run: torch reads how many threads it may have when it is imported."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def _as_text(end: Connection, mode: str) -> IO[str]:
    file = os.fdopen(os.dup(end.fileno()), mode)
    end.close()
    return file


def _run(arguments: list[str], environment: dict[str, str], ends: tuple[Connection, Connection, Connection]) -> None:
    """Be the module, in the forked process."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), line_buffering=True)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
