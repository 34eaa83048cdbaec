"""Frames over a libp2p stream: the thin shell around ``node.wire``. Runs in the event loop; touches payloads as bytes.

Knows nothing of sessions. A frame is read whole, after its announced length has been bounded.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from node.errors import UnavailableError
from node.wire import LENGTH_BYTES, Frame, Sendable, decode, decode_length, encode

_JOIN_BELOW_BYTES = 64 * 2**10
"""A smaller payload is joined to its header, so that a decode step is one write."""


class ByteStream(Protocol):
    """What a transport has to offer: ``dht.swarm.Stream`` does."""

    peer_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self) -> None:
        """End the stream in both directions."""


class FrameStream:
    """Sends and receives frames on one stream and counts their bytes."""

    def __init__(self, stream: ByteStream) -> None:
        self.peer_id = stream.peer_id
        self.bytes_in = 0
        self.bytes_out = 0
        self._stream = stream

    async def receive(self) -> Frame | None:
        """Return the next frame, or None when the peer has closed the stream.

        Raises:
            FrameError: the peer sent what is not a frame; the stream is of no use any more.
        """
        reader = self._stream.reader
        try:
            length = decode_length(await reader.readexactly(LENGTH_BYTES))
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        self.bytes_in += LENGTH_BYTES + length
        return decode(body)

    async def send(self, frame: Sendable) -> None:
        """Write ``frame`` and wait while the peer is slower than we are.

        Raises:
            UnavailableError: the stream is closed.
        """
        head, payload = encode(frame)
        size = memoryview(payload).nbytes
        writer = self._stream.writer
        try:
            if size < _JOIN_BELOW_BYTES:
                writer.write(b"".join((head, payload)) if size else head)
            else:
                writer.write(head)
                writer.write(payload)
            await writer.drain()
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for a transport that is closing
            raise UnavailableError(f"The stream to {self.peer_id} is closed.") from error
        self.bytes_out += len(head) + size

    async def close(self) -> None:
        """End the stream."""
        await self._stream.close()
