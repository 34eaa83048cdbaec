"""What strangers' machines do, done on purpose to processes of our own on this machine: vanish, freeze, come back.

A ``Fleet`` starts servers of one model and harms those that it started, by their own process ids, and their links.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.churn.links import Link, Links
from tests.processes import NodeProcess, children_of, is_running

_OURS = ("node",)


class Fleet:
    """Servers of one model; all of them end with the context.

    Args:
        model: the model's directory.
        join: join code of their swarm.
        home: a directory for theirs.
        extra: further arguments of ``efedllm serve``.
        proxied: whether each server stands behind a proxy, so that its link can be harmed; Links: beside those there.
    """

    def __init__(self, model: Path | str, join: str, home: Path, *extra: str, proxied: bool | Links = False) -> None:
        self.servers: dict[str, NodeProcess] = {}
        """Those that were started and not ended, by peer id."""
        self._model, self._join, self._home, self._extra = str(model), join, home, extra
        self._spans: dict[str, tuple[int, int]] = {}
        self._links: dict[str, Link] = {}
        self._own_links = Links() if proxied is True else None
        self.links = self._own_links or (proxied if isinstance(proxied, Links) else None)
        """What lies between the servers, and others; None: nothing."""
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
        with contextlib.ExitStack() as exits:
            if self._own_links is not None:
                exits.callback(self._own_links.close)
            for server in self.servers.values():
                exits.callback(server.stop)

    def start(self, *spans: tuple[int, int], program: Sequence[str] = _OURS) -> list[str]:
        """Start a server for each span at once; return their peer ids when all are ready."""
        started = []
        for span in spans:
            link = self.links.open() if self.links else None
            started.append((span, link, self._begin(span, self._home / f"fleet-{next(self._numbers)}", link, program)))
        return [self._ready(span, link, server) for span, link, server in started]

    def _begin(
        self, span: tuple[int, int], home: Path, link: Link | None, program: Sequence[str] = _OURS
    ) -> NodeProcess:
        start, end = span
        arguments = ["serve", self._model, "--join", self._join, "--blocks", f"{start}:{end}", "--device", "cpu"]
        arguments += link.arguments if link else []
        server = NodeProcess([*arguments, *self._extra], home, program=program)
        if link is not None:
            link.pid = server.pid
        return server

    def _ready(self, span: tuple[int, int], link: Link | None, server: NodeProcess) -> str:
        peer_id: str = server.ready()["peer_id"]
        self.servers[peer_id], self._spans[peer_id] = server, span
        if link is not None:
            self._links[peer_id] = link
        return peer_id

    def kill(self, peer_id: str) -> None:
        """Let a server vanish: without a word, its p2pd with it."""
        server = self.servers[peer_id]
        server.signal(signal.SIGKILL)
        server.wait()
        self._set_up(False, peer_id)

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
        """Start servers again that were killed, with the same identities and ports, at once."""
        started = {}
        self._set_up(True, *peer_ids)
        for peer_id in peer_ids:
            old = self.servers.pop(peer_id)
            old.stop()
            started[peer_id] = self._begin(self._spans[peer_id], old.home, self._links.get(peer_id))
        for peer_id, server in started.items():
            assert self._ready(self._spans[peer_id], self._links.get(peer_id), server) == peer_id

    def _set_up(self, is_up: bool, *peer_ids: str) -> None:
        if self.links is not None:
            for peer_id in peer_ids:
                self._links[peer_id].is_up = is_up
            self.links.apply()

    # Their links.

    def slow(self, peer_id: str, bytes_per_s: float) -> None:
        """Let each connection of a server carry only so much, each way."""
        self._proxied.change([self._links[peer_id]], bytes_per_s=bytes_per_s)

    def delay(self, peer_id: str, round_trip_s: float) -> None:
        """Let a round trip between a server and anybody take so long; of two servers, the longer one of both counts."""
        self._proxied.change([self._links[peer_id]], delay_s=round_trip_s / 2)

    def drop(self, peer_id: str) -> None:
        """Let everything that a server sends and is sent vanish, while its connections stay open."""
        self._proxied.change([self._links[peer_id]], drops=True)

    def corrupt(self, peer_id: str) -> None:
        """Flip a bit in what comes next, each way, on each connection of a server."""
        self._proxied.corrupt([self._links[peer_id]])

    def partition(self, *peer_ids: str, is_silent: bool = False) -> None:
        """Part servers from everybody else; among themselves they reach each other.

        Args:
            peer_ids: the servers.
            is_silent: bytes vanish; otherwise connections are cut, and new ones refused.
        """
        self._proxied.partition([self._links[peer_id] for peer_id in peer_ids], is_silent=is_silent)

    def heal(self, *peer_ids: str) -> None:
        """Let the links of servers be good again, whatever was done to them."""
        self._proxied.heal([self._links[peer_id] for peer_id in peer_ids])

    def link_of(self, peer_id: str) -> Link:
        """Return a server's link."""
        return self._links[peer_id]

    @property
    def _proxied(self) -> Links:
        assert self.links is not None, "Only servers of Fleet(..., proxied=True) have links that can be harmed."
        return self.links
