"""Frames over a libp2p stream: the thin shell around ``node.wire``. Runs in the event loop; touches payloads as bytes.

Knows nothing of sessions. A frame is read whole, after its announced length has been bounded, into writable memory of
its own, so that whoever makes a tensor of its payload need not copy it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from node.errors import FrameError, UnavailableError
from node.wire import LENGTH_BYTES, MAX_FRAME_BYTES, Frame, Sendable, decode, decode_length, encode

_JOIN_BELOW_BYTES = 64 * 2**10
"""A smaller payload is joined to its header, so that a decode step is one write."""
_READ_BYTES = 16 * 2**10
"""One read of a small frame; the rest of a large one is read by its length."""


class ByteStream(Protocol):
    """What a transport has to offer: ``dht.swarm.Stream`` does."""

    peer_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def finish(self) -> None:
        """Let the peer close first, for a while, then close: so that it reads what was written last."""

    async def close(self) -> None:
        """End the stream in both directions."""


class FrameStream:
    """Sends and receives frames on one stream and counts their bytes."""

    def __init__(self, stream: ByteStream) -> None:
        self.peer_id = stream.peer_id
        self.bytes_in = 0
        self.bytes_out = 0
        self._stream = stream
        self._held = bytearray()
        """The next frame as far as it has been read, and what came in one piece with it."""

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> Frame | None:
        """Return the next frame, or None when the peer has closed the stream.

        Args:
            max_bytes: the longest frame, without its prefix, that is read.

        Raises:
            FrameError: the peer sent what is not a frame, or a longer one; the stream is of no use any more.
        """
        end = await self._read_until(max_bytes, MAX_FRAME_BYTES)
        if end is None:
            return None
        whole = self._held
        self._held = whole[end:]
        self.bytes_in += end
        return decode(memoryview(whole)[LENGTH_BYTES:end])

    async def peek(self, num_bytes: int) -> bytes | None:
        """Return the first bytes of the next frame behind its prefix and leave it to ``receive``; None at the end.

        Raises:
            FrameError: the peer announced what is not a frame.
        """
        end = await self._read_until(MAX_FRAME_BYTES, num_bytes)
        return None if end is None else bytes(self._held[LENGTH_BYTES:end])

    async def _read_until(self, max_bytes: int, num_bytes: int) -> int | None:
        """Hold the next frame's first ``num_bytes`` behind its prefix; return where they end, None without them."""
        try:
            while len(self._held) < LENGTH_BYTES:
                if not await self._read_some():
                    return None
            length = decode_length(bytes(self._held[:LENGTH_BYTES]))
            if length > max_bytes:
                raise FrameError(f"A frame of {length} bytes was announced where {max_bytes} are allowed.")
            end = LENGTH_BYTES + min(length, num_bytes)
            while len(self._held) < end:
                if not await self._read_some(end - len(self._held)):
                    return None
        except OSError:
            return None
        return end

    async def _read_some(self, num_bytes: int = _READ_BYTES) -> bool:
        """Read what is there, which is a whole frame in decoding; return False at the end of the stream."""
        piece = await self._stream.reader.read(num_bytes)
        self._held += piece
        return bool(piece)

    def write(self, frame: Sendable) -> None:
        """Hand ``frame`` to the stream without waiting; for frames that an answer follows, which bound what is queued.

        Raises:
            UnavailableError: the stream is closed.
        """
        head, payload = encode(frame)
        size = memoryview(payload).nbytes
        writer = self._stream.writer
        if writer.is_closing():
            raise UnavailableError(f"The stream to {self.peer_id} is closed.")
        try:
            if size < _JOIN_BELOW_BYTES:
                writer.write(b"".join((head, payload)) if size else head)
            else:
                writer.write(head)
                writer.write(payload)
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for a transport that is closing
            raise UnavailableError(f"The stream to {self.peer_id} is closed.") from error
        self.bytes_out += len(head) + size

    async def send(self, frame: Sendable, timeout_s: float | None = None) -> None:
        """Write ``frame`` and wait while the peer is slower than we are.

        Raises:
            UnavailableError: the stream is closed, or the peer has not read enough of it within ``timeout_s``.
        """
        self.write(frame)
        if self._stream.writer.transport.get_write_buffer_size() < _JOIN_BELOW_BYTES:
            return  # The stream takes more; a decode step need not pay for a timeout.
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream.writer.drain()
        except TimeoutError as error:
            raise UnavailableError(f"{self.peer_id} does not read what is sent to it.") from error
        except (OSError, RuntimeError) as error:
            raise UnavailableError(f"The stream to {self.peer_id} is closed.") from error

    async def finish(self) -> None:
        """Let the peer close first, for a while, then close: so that it reads what was written last."""
        await self._stream.finish()

    def close_later(self, delay_s: float) -> None:
        """End the stream after ``delay_s``, if the peer has not done so; for a stream that another task reads.

        What is queued may take as long again; a peer that has not read it by then is not waited for.
        """
        loop, writer = asyncio.get_running_loop(), self._stream.writer
        loop.call_later(delay_s, writer.close)
        loop.call_later(2 * delay_s, writer.transport.abort)

    async def close(self) -> None:
        """End the stream in both directions."""
        await self._stream.close()
