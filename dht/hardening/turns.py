"""Do many pieces of work side by side, but only so many at once. It runs on the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def in_turns(work: Callable[[Item], Awaitable[None]], items: Iterable[Item], num_at_once: int) -> None:
    """Do a piece of work for each item, so many at once."""
    waiting = list(items)

    async def worker() -> None:
        while waiting:
            await work(waiting.pop())

    await asyncio.gather(*(worker() for _ in range(min(num_at_once, len(waiting)))))
