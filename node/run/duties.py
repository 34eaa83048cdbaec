"""Keep what a node does in the background going: an error that nobody foresaw is told, and the duty begins again.

It does not know what the duties are. It runs in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from dht.errors import DaemonDied

logger = logging.getLogger(__name__)

PAUSE_S = 60.0
"""Seconds after which a duty that an error has ended begins again."""

Duty = Callable[[], Awaitable[None]]


async def keep_up(what: str, duty: Duty, pause_s: float = PAUSE_S) -> None:
    """Do a duty until it ends by itself, or our p2pd has ended.

    Args:
        what: It is, for people.
        duty: Called again after an error.
        pause_s: Seconds between an error and the next attempt.
    """
    while True:
        try:
            await duty()
        except DaemonDied:
            return  # Whoever runs the node notices, and ends it.
        except Exception:
            logger.exception("%s: this is a bug; please report it. It is tried again in %.0f s.", what, pause_s)
        else:
            return
        await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def in_background(duties: Mapping[str, Duty]) -> AsyncIterator[None]:
    """Do duties while the context lasts; each by the name that people know it by."""
    tasks = [asyncio.create_task(keep_up(what, duty)) for what, duty in duties.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
