"""What strangers' machines do, done on purpose to processes of our own on this machine: vanish, freeze, come back.

A ``Fleet`` starts servers of one model and harms those that it started, by their own process ids.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.processes import NodeProcess, children_of, is_running


class Fleet:
    """Servers of one model; all of them end with the context.

    Args:
        model: the model's directory.
        join: join code of their swarm.
        home: a directory for theirs.
        extra: further arguments of ``efedllm serve``.
    """

    def __init__(self, model: Path | str, join: str, home: Path, *extra: str) -> None:
        self.servers: dict[str, NodeProcess] = {}
        """Those that were started and not ended, by peer id."""
        self._model, self._join, self._home, self._extra = str(model), join, home, extra
        self._spans: dict[str, tuple[int, int]] = {}
        self._numbers = itertools.count()
        self._frozen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer_id in list(self._frozen):
            self.thaw(peer_id)
        for server in self.servers.values():
            if server.returncode is None:
                server.signal(signal.SIGTERM)
        for server in self.servers.values():
            server.stop()

    def start(self, *spans: tuple[int, int]) -> list[str]:
        """Start a server for each span at once; return their peer ids when all are ready."""
        started = [(span, self._begin(span, self._home / f"fleet-{next(self._numbers)}")) for span in spans]
        return [self._ready(span, server) for span, server in started]

    def _begin(self, span: tuple[int, int], home: Path) -> NodeProcess:
        start, end = span
        arguments = ["serve", self._model, "--join", self._join, "--blocks", f"{start}:{end}", "--device", "cpu"]
        return NodeProcess([*arguments, *self._extra], home)

    def _ready(self, span: tuple[int, int], server: NodeProcess) -> str:
        peer_id: str = server.ready()["peer_id"]
        self.servers[peer_id], self._spans[peer_id] = server, span
        return peer_id

    def kill(self, peer_id: str) -> None:
        """Let a server vanish: without a word, its p2pd with it."""
        server = self.servers[peer_id]
        server.signal(signal.SIGKILL)
        server.wait()

    def kill_daemon(self, peer_id: str) -> None:
        """Let a server's p2pd die under it."""
        for pid in children_of(self.servers[peer_id].pid):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)

    def freeze(self, peer_id: str) -> None:
        """Stop a server in its tracks; its p2pd stays, so that its connections do too."""
        self.servers[peer_id].signal(signal.SIGSTOP)
        self._frozen.add(peer_id)

    def thaw(self, peer_id: str) -> None:
        """Let a frozen server go on."""
        self._frozen.discard(peer_id)
        if self.servers[peer_id].returncode is None:
            self.servers[peer_id].signal(signal.SIGCONT)

    def restart(self, *peer_ids: str) -> None:
        """Start servers again that were killed, with the same identities, at once."""
        started = {}
        for peer_id in peer_ids:
            old = self.servers.pop(peer_id)
            old.stop()
            started[peer_id] = self._begin(self._spans[peer_id], old.home)
        for peer_id, server in started.items():
            assert self._ready(self._spans[peer_id], server) == peer_id


class AtTokens:
    """A streamer for ``generate`` that acts when so many tokens have come, and notes when each came.

    Args:
        acts: what to do, by the number of tokens after which it is done.
    """

    def __init__(self, acts: dict[int, Any]) -> None:
        self.times_s: list[float] = []
        """When each token came, by the monotonic clock."""
        self._acts = acts
        self._has_seen_prompt = False

    def put(self, value: Any) -> None:
        """Take the prompt, then one token after the other."""
        del value
        if not self._has_seen_prompt:
            self._has_seen_prompt = True
            return
        self.times_s.append(time.monotonic())
        act = self._acts.pop(len(self.times_s), None)
        if act is not None:
            act()

    def end(self) -> None:
        """Take the end."""

    def pauses_s(self) -> list[float]:
        """Return the times between tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times_s)]
