"""Opens the logs of sessions to their clients, in pieces, and no faster than harms nobody. Runs in the event loop.

Which log a client may see is decided by ``handler`` and ``archive``; what it means is the client's affair.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from node.errors import Refused
from node.serve.archive import Ration
from node.step_log import StepLog
from node.transport import FrameStream
from node.wire import MAX_OPENING_BYTES, Opening, Reveal

BYTES_PER_S = 8 * 2**20
"""So fast one log is opened, bytes per second."""
MAX_AT_ONCE = 8
"""Logs that are opened at the same time, each for another client."""
_RETRY_S = 1.0


class Openable(Protocol):
    """A log that may be opened: of a session that runs, or has ended."""

    @property
    def log(self) -> StepLog | None:
        """The log; None: nothing is handed on to a stage."""

    @property
    def ration(self) -> Ration:
        """What has been opened of it."""


class Reveals:
    """Answers ``reveal``.

    Args:
        find: returns what a peer may have opened of a session; None: nothing, or there is no such session.
        pay: waits until so many bytes may be moved.
        send_timeout_s: who does not read for so long is given up.
    """

    def __init__(
        self,
        find: Callable[[bytes, str], Openable | None],
        pay: Callable[[int], Awaitable[None]],
        send_timeout_s: float,
    ) -> None:
        self._find = find
        self._pay = pay
        self._send_timeout_s = send_timeout_s
        self._serving = Counter[str]()
        """By peer."""

    async def answer(self, frames: FrameStream, asked: Reveal) -> None:
        """Send what was asked for.

        Raises:
            Refused: it is not there, or not for this peer, or not now.
            UnavailableError: the peer is gone, or does not read.
        """
        peer = frames.peer_id
        found = self._find(asked.session, peer)
        log = found.log if found is not None else None
        if found is None or log is None or not asked.first < asked.end <= log.length:
            raise _gone()
        if self._serving[peer] or len(+self._serving) >= MAX_AT_ONCE:
            message = "Other logs are being opened; ask again in a second."
            raise Refused("busy", message, retryable=True, retry_after_s=_RETRY_S)
        found.ration.take((asked.end - asked.first) * log.position_bytes, log.length * log.position_bytes)
        self._serving[peer] += 1
        try:
            await self._send(frames, asked, log)
        finally:
            del self._serving[peer]

    async def _send(self, frames: FrameStream, asked: Reveal, log: StepLog) -> None:
        at_once = max(1, MAX_OPENING_BYTES // log.position_bytes)
        for position in range(asked.first, asked.end, at_once):
            tokens = min(at_once, asked.end - position)
            if position + tokens > log.length:  # Cropped meanwhile.
                raise _gone()
            shape, codec, payload = log.piece(position, tokens)
            await self._pay(len(payload))
            await frames.send(Opening(asked.session, position, shape, codec, payload), self._send_timeout_s)
            await asyncio.sleep(len(payload) / BYTES_PER_S)


def _gone() -> Refused:
    return Refused("gone", "That is not here to be opened: it was never, or is not any more, or is somebody else's.")
