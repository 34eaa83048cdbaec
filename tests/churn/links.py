"""The links between nodes on this machine: a proxy before each node, and what is wrong with each node's link.

A libp2p connection goes through the proxy of whichever side was dialled, once, and carries both directions. What it is
like is the worse of what both ends' links are like; who dials is found by the port that the connection comes from.
A dialer without a link here (a client) has a good one.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.churn.sockets import connections_of
from tests.churn.way import GOOD, Conditions
from tests.processes import bootstrap
from tests.tcp_proxy import HOST, TcpProxy, hold_port

_DOWN = Conditions(refuses=True)
_SILENT = Conditions(drops=True)
_MAINLAND = 0


@dataclass(eq=False)
class Link:
    """One node's link. Made by ``Links.open``."""

    name: str
    listen_port: int
    """Where the node itself listens; nobody but its proxy connects there."""
    proxy: TcpProxy
    pid: int | None = None
    """The node's process, as soon as there is one."""
    conditions: Conditions = GOOD
    is_up: bool = True
    """Whether the node runs: the proxy of one that does not refuses, as its port would."""
    island: int = _MAINLAND
    """Nodes reach each other when they are on the same one."""
    is_silent: bool = False
    """Whether bytes vanish between islands, instead of connections being cut and refused."""

    @property
    def arguments(self) -> list[str]:
        """What makes an ``efedllm`` command listen behind the proxy, and announce the proxy."""
        return ["--listen", f"/ip4/{HOST}/tcp/{self.listen_port}", "--announce", f"/ip4/{HOST}/tcp/{self.proxy.port}"]


def between(target: Link, dialer: Link | None) -> Conditions:
    """Return what a connection to ``target`` is like; ``dialer`` None: somebody without a link."""
    if not target.is_up:
        return _DOWN
    conditions = target.conditions.worse(dialer.conditions) if dialer else target.conditions
    if target.island == (dialer.island if dialer else _MAINLAND):
        return conditions
    is_silent = target.is_silent or (dialer is not None and dialer.is_silent)
    return conditions.worse(_SILENT if is_silent else _DOWN)


class Links:
    """All links of one swarm. Ended by ``close``, or with its context."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._held = contextlib.ExitStack()
        self._islands = itertools.count(_MAINLAND + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all proxies and give the ports back."""
        self._held.close()

    def open(self) -> Link:
        """Make a link for a node that is about to start."""
        held = self._held.enter_context(hold_port())
        port: int = held.getsockname()[1]
        proxy = self._held.enter_context(TcpProxy(port, self._name_of))
        link = Link(str(len(self.links)), port, proxy)
        self.links.append(link)
        self.apply()
        return link

    @contextlib.contextmanager
    def bootstrap(self, home: Path, *extra: str) -> Iterator[tuple[Link, str]]:
        """Run a private bootstrap behind a link; yield that with its join code."""
        link = self.open()
        with bootstrap(home, *link.arguments, *extra) as (process, join):
            link.pid = process.pid
            yield link, join

    def change(self, links: Iterable[Link], **values: object) -> None:
        """Change fields of ``links``' conditions; returns when it is so."""
        for link in links:
            link.conditions = replace(link.conditions, **values)  # type: ignore[arg-type]
        self.apply()

    def corrupt(self, links: Iterable[Link]) -> None:
        """Flip a bit in what comes next, each way, on each connection of ``links``."""
        for link in links:
            for target in self.links:
                target.proxy.corrupt(None if target is link else link.name)

    def partition(self, links: Iterable[Link], *, is_silent: bool = False) -> None:
        """Part ``links`` from all others, known here or not; among themselves nothing changes."""
        island = next(self._islands)
        for link in links:
            link.island, link.is_silent = island, is_silent
        self.apply()

    def heal(self, links: Iterable[Link]) -> None:
        """Let links be good again, whatever was done to them."""
        for link in links:
            link.conditions, link.island, link.is_silent = GOOD, _MAINLAND, False
        self.apply()

    def apply(self) -> None:
        """Let all proxies do what the links say."""
        for target in self.links:
            by_dialer = {other.name: between(target, other) for other in self.links if other is not target}
            target.proxy.set(between(target, None), by_dialer)

    def _name_of(self, port: int) -> str | None:
        """Name the node whose connection comes from ``port``. Runs in a proxy's thread."""
        for link in self.links:  # libp2p dials from where it listens, when it can.
            if link.listen_port == port:
                return link.name
        for link in self.links:
            if link.pid is not None and any(end.port == port for end in connections_of(link.pid)):
                return link.name
        return None
