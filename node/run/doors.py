"""Whether a server takes sessions now: its donor, the hours of the day, and its end decide. Runs in the event loop.

    shut                        nothing changes until blocks are loaded
leaves                      DRAINING, for good
paused, or outside hours    PAUSED
otherwise                   ONLINE
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable

from dht.records import ServerState
from node.serve.hours import Hours

_LOOK_S = 5.0
"""How often the clock is looked at, s."""


def minute_of_day() -> int:
    """Return the minute of the day by this machine's clock and time zone, 0 to 1439."""
    now = datetime.datetime.now().astimezone()
    return now.hour * 60 + now.minute


class Doors:
    """Opened by ``open``, and from then on kept as the donor wants them.

    Args:
        hours: when sessions are taken; None: always.
        enter: told of every change of the state.
        minute: gives the minute of the day.
    """

    def __init__(
        self,
        hours: Hours | None,
        enter: Callable[[ServerState], Awaitable[None]],
        minute: Callable[[], int] = minute_of_day,
    ) -> None:
        self.state = ServerState.JOINING
        self._hours = hours
        self._enter = enter
        self._minute = minute
        self._is_paused = self._is_leaving = False
        self._is_loading = True
        self._turn = asyncio.Lock()

    @property
    def why(self) -> str:
        """Why sessions are not taken; empty when they are."""
        if self._is_leaving:
            return "it leaves"
        if self._is_paused:
            return "its donor has paused it"
        return "" if self._is_in_hours else f"it serves at {self._hours}"

    @property
    def _is_in_hours(self) -> bool:
        return self._hours is None or self._hours.contain(self._minute())

    async def open(self) -> None:
        """Take sessions, if it is time to: the blocks are there."""
        self._is_loading, self.state = False, ServerState.JOINING
        await self._settle()

    def shut(self) -> None:
        """Take no sessions until ``open``, whoever asks: there are no blocks."""
        self._is_loading, self.state = True, ServerState.JOINING

    async def pause(self) -> None:
        """Take no new sessions until ``resume``."""
        self._is_paused = True
        await self._settle()

    async def resume(self) -> None:
        """Take sessions again, if it is time to."""
        self._is_paused = False
        await self._settle()

    async def leave(self) -> None:
        """Take no sessions any more."""
        self._is_leaving = True
        await self._settle()

    async def watch(self) -> None:
        """Follow the clock until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._settle()

    async def _settle(self) -> None:
        async with self._turn:
            state = self._wanted
            if state is not self.state and not self._is_loading:
                self.state = state
                await self._enter(state)

    @property
    def _wanted(self) -> ServerState:
        if self._is_leaving:
            return ServerState.DRAINING
        return ServerState.ONLINE if self._is_in_hours and not self._is_paused else ServerState.PAUSED
