"""Frames cross real sockets whole, and a stream that lies or ends is told apart from one that speaks."""

import asyncio
import contextlib
import struct
import tracemalloc
from dataclasses import dataclass

import pytest

from node.errors import FrameError, UnavailableError
from node.transport import FrameStream
from node.wire import MAX_FRAME_BYTES, Close, Refuse, Result, Step, encode


@dataclass
class SocketStream:
    """One end of a TCP connection on loopback, as ``dht.swarm.Stream`` offers it."""

    peer_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def ends():
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *pair: accepted.set_result(pair), "127.0.0.1", 0)
    here = SocketStream("there", *await asyncio.open_connection(*server.sockets[0].getsockname()))
    there = SocketStream("here", *await accepted)
    yield here, there
    for end in (here, there):
        end.writer.transport.abort()  # Unread bytes would hold a polite close for ever.
        await end.close()
    server.close()
    await server.wait_closed()


def frame_of(size):
    return Step(bytes(16), 0, (1, size // 4, 1), "float32", bytes(range(256)) * (size // 256))


async def send_many(stream, num_frames):
    for _ in range(num_frames):
        await stream.send(frame_of(2**20))


@pytest.mark.parametrize("size", [256, 64 * 2**10, 8 * 2**20])
async def test_frames_of_any_size_arrive_whole_and_in_order(ends, size):
    here, there = (FrameStream(end) for end in ends)
    frames = [Close(bytes(16)), frame_of(size), Refuse(bytes(16), "full", "No."), frame_of(size)]

    async def send_all():
        for frame in frames:
            await here.send(frame)

    sending = asyncio.create_task(send_all())
    assert [await there.receive() for _ in frames] == frames
    await sending
    assert here.bytes_out == there.bytes_in > 2 * size
    assert (here.bytes_in, there.bytes_out) == (0, 0)


async def test_a_stream_that_ends_between_frames_or_inside_one_gives_none(ends):
    here, there = ends
    head, payload = encode(frame_of(256))
    here.writer.write(head + bytes(payload) + head)
    await here.close()
    stream = FrameStream(there)
    assert await stream.receive() == frame_of(256)
    assert await stream.receive() is None
    assert await stream.receive() is None


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
async def test_an_impossible_length_is_refused_before_anything_else_is_read(ends, length):
    here, there = ends
    here.writer.write(struct.pack(">I", length))
    await here.writer.drain()
    async with asyncio.timeout(5):
        with pytest.raises(FrameError, match="announced"):
            await FrameStream(there).receive()


async def test_a_length_that_lies_makes_a_frame_that_is_refused(ends):
    here, there = ends
    head, payload = encode(Result(bytes(16), 0, (1, 1, 2), "float32", bytes(8)))
    shorter = struct.pack(">I", len(head) - 4 + 4)
    here.writer.write(shorter + head[4:] + bytes(payload))
    with pytest.raises(FrameError, match="payload bytes"):
        await FrameStream(there).receive()


async def test_sending_to_a_peer_that_is_gone_says_so(ends):
    here, there = ends
    await there.close()
    stream = FrameStream(here)
    with pytest.raises(UnavailableError, match="there is closed"):
        await send_many(stream, 200)


async def test_sending_waits_for_a_peer_that_does_not_read(ends):
    here, _ = ends
    stream = FrameStream(here)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send_many(stream, 64), 0.2)
    assert stream.bytes_out < 32 * 2**20


async def test_closing_ends_the_stream_for_both_sides(ends):
    here, there = (FrameStream(end) for end in ends)
    await here.close()
    async with asyncio.timeout(5):
        assert await there.receive() is None
    with pytest.raises(UnavailableError):
        here.write(Close(bytes(16)))


async def test_frames_that_arrive_in_one_piece_are_told_apart(ends):
    here, there = ends
    frames = [frame_of(256), Close(bytes(16)), frame_of(512)]
    here.writer.write(b"".join(bytes(part) for frame in frames for part in encode(frame)))
    stream = FrameStream(there)
    assert [await stream.receive() for _ in frames] == frames


@pytest.mark.parametrize("size", [256, 2**20])
async def test_a_payload_arrives_in_writable_memory_of_its_own(ends, size):
    here, there = (FrameStream(end) for end in ends)
    sending = asyncio.create_task(send_frames(here, [frame_of(size), frame_of(size)]))
    first, second = [await there.receive() for _ in range(2)]
    await sending
    first.payload[:] = bytes(size)
    assert second == frame_of(size)


async def send_frames(stream, frames):
    for frame in frames:
        await stream.send(frame)


async def test_a_large_frame_that_was_peeked_at_arrives_whole_with_those_behind_it(ends):
    here, there = (FrameStream(end) for end in ends)
    frames = [frame_of(2**20), Close(bytes(16))]
    sending = asyncio.create_task(send_frames(here, frames))
    body = b"".join(encode(frames[0]))[4:]
    assert await there.peek(1000) == body[:1000]
    assert await there.peek(5000) == body[:5000]
    assert [await there.receive() for _ in frames] == frames
    await sending


async def test_a_frame_takes_memory_as_it_comes_and_not_as_it_is_announced(ends):
    here, there = ends
    here.writer.write(struct.pack(">I", MAX_FRAME_BYTES) + bytes(1000))
    await here.writer.drain()
    tracemalloc.start()
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(FrameStream(there).receive(), 0.3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
