"""Find the members nearest to an id, by asking ever nearer ones for their neighbours (Kademlia's iterative look-up).

In place of hivemind's ``traverse_dht``, whose stock behaviour this mends: members that do not answer count among the
nearest, so a peer that names ghosts ends the search before it has met anyone else; one call that is given up fails the
whole search with an assertion; every call leaves a task behind; a search asks without end whom it is told of.
This file does not know how members are asked. It runs on the event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TypeVar

Peer = TypeVar("Peer", bound=Hashable)

MAX_ASKED = 160
"""Members that one search asks at most; eight times those that it looks for."""


async def find_nearest(
    distance: Callable[[Peer], int],
    known: Mapping[Peer, int],
    ask: Callable[[Peer], Awaitable[list[Peer] | None]],
    *,
    beam: int,
    num_at_once: int,
    max_asked: int = MAX_ASKED,
) -> list[Peer]:
    """Find the members that answer and are nearest, the nearest first.

    Args:
        distance: From the id to a member.
        known: Members to begin with, and their distances.
        ask: Gives the neighbours that a member names; None when it does not answer.
        beam: How many are looked for.
        num_at_once: How many are asked side by side.
        max_asked: How many are asked in all.
    """
    distances = dict(known)
    asked: set[Peer] = set()
    silent: set[Peer] = set()
    asking: dict[asyncio.Task[list[Peer] | None], Peer] = {}
    try:
        while True:
            nearest = sorted((peer for peer in distances if peer not in silent), key=distances.__getitem__)[:beam]
            for peer in nearest:
                if peer not in asked and len(asking) < num_at_once and len(asked) < max_asked:
                    asked.add(peer)
                    asking[asyncio.ensure_future(ask(peer))] = peer
            if not asking:
                return [peer for peer in nearest if peer in asked]
            done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                peer = asking.pop(task)
                neighbours = task.result()
                if neighbours is None:
                    silent.add(peer)
                for neighbour in neighbours or ():
                    if neighbour not in distances:
                        distances[neighbour] = distance(neighbour)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
