"""Ask one stage to open a part of what it has handed on in a session of ours. Runs in the client's event loop.

What the bytes are worth is seen from hashes (``audit_check``); here is checked that they have the form asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from node.client.route import Stage
from node.errors import Refused, SessionError, UnavailableError
from node.step_log import StepLog
from node.transport import ByteStream, FrameStream
from node.wire import MAX_HEADER_BYTES, MAX_OPENING_BYTES, PROTOCOL, Frame, Opening, Refuse, Reveal

PIECE_S = 10.0
"""So long the next piece is waited for, s."""


class Dialer(Protocol):
    """Opens a stream to a peer: ``dht.swarm.Swarm.dial``."""

    def __call__(
        self, peer_id: str, protocol: str, *, addresses: Sequence[str] = (), timeout_s: float = 5.0
    ) -> Awaitable[ByteStream]:
        """Return an open stream to ``peer_id``."""


class NotAnswered(UnavailableError):
    """A stage that can be reached has ended the stream instead of answering."""


async def fetch(dial: Dialer, stage: Stage, asked: Reveal, log: StepLog) -> None:
    """Put what a stage opens behind what is in a log; where this fails, as much of it as has come is there.

    Args:
        dial: opens a stream.
        stage: whom to ask.
        asked: for what.
        log: takes it; has the session's codec, rows and width.

    Raises:
        DhtError: it cannot be reached.
        Refused: it does not open it, and says why.
        NotAnswered: it does not open it.
        UnavailableError: it is gone, or silent.
        RemoteError: it answers with something else.
    """
    frames = FrameStream(await dial(stage.peer_id, PROTOCOL, addresses=stage.addresses))
    max_bytes = MAX_HEADER_BYTES + max(MAX_OPENING_BYTES, log.position_bytes)
    offset = asked.first - log.length
    try:
        await frames.send(asked, PIECE_S)
        while offset + log.length < asked.end:
            _take(await _next(frames, max_bytes), asked, log, offset)
    finally:
        await frames.close()


async def _next(frames: FrameStream, max_bytes: int) -> Frame:
    try:
        async with asyncio.timeout(PIECE_S):
            frame = await frames.receive(max_bytes)
    except TimeoutError:
        raise UnavailableError("It does not answer.") from None
    if frame is None:
        raise NotAnswered("It ends the stream instead of answering.")
    return frame


def _take(frame: Frame, asked: Reveal, log: StepLog, offset: int) -> None:
    match frame:
        case Refuse():
            raise Refused(frame.code, frame.message, retryable=frame.retryable)
        case Opening(session=asked.session, position=position, codec=codec, shape=(rows, tokens, width)):
            is_next = position == offset + log.length and position + tokens <= asked.end
            if not is_next or (codec, rows, width) != (log.codec, log.rows, log.width):
                raise SessionError("It opens something else than was asked for.")
            log.append_history(frame.shape, frame.payload)
        case _:
            raise SessionError(f"It answers with {type(frame).__name__}.")
