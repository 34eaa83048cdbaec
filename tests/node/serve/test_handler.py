"""Sessions of a real handler over loopback sockets: whatever ends one, nothing of it stays behind."""

import asyncio
import contextlib
import os
import time
import weakref

import pytest
import torch

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.members import Stream
from node.engine import Engine
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.serve.handler import Handler, Served
from node.serve.prefixes import PrefixStore
from node.transport import FrameStream
from node.wire import Accept, Open, Refuse, Result, StageLost, Step, encode
from tests.families import FAMILIES, NUM_BLOCKS, build

HIDDEN = 32
MANIFEST = bytes(range(32))
CACHE_POSITIONS = 2**16
CLIENT, STAGE = (Identity.ephemeral().peer_id for _ in range(2))
SOON_S = 10.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build("llama", FAMILIES["llama"]).save_pretrained(directory)
    checkpoint, dtype = Checkpoint.open(str(directory)), torch.float32
    tensors = checkpoint.load_span(0, NUM_BLOCKS, dtype=dtype)
    return build_span(checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=dtype, device=torch.device("cpu"))


class Unforeseen(Exception):
    """An error that nobody thought of."""


class Server:
    """A handler behind a socket: the first line of a stream says which peer it is of."""

    def __init__(self, handler, caches):
        self.handler = handler
        self.caches = caches
        self.address = None
        self.streams = []

    async def accept(self, reader, writer):
        peer_id = (await reader.readline()).decode().strip()
        with contextlib.suppress(Unforeseen):  # as the border of stream handlers does
            await self.handler.handle(Stream(peer_id, reader, writer))

    async def dial(self, peer_id=CLIENT):
        reader, writer = await asyncio.open_connection(*self.address, limit=2**16)
        writer.write(f"{peer_id}\n".encode())
        stream = Stream("server", reader, writer)
        self.streams.append(stream)
        return FrameStream(stream), stream

    async def open(self, **changes):
        """Open a session; return its id and the client's stream."""
        frames, stream = await self.dial()
        opened = opening(**changes)
        await frames.send(opened)
        assert isinstance(await frames.receive(), Accept)
        return opened.session, frames, stream

    async def until_all_is_free(self):
        """Wait until no session, promise or cache is left."""
        async with asyncio.timeout(SOON_S):
            while self.handler.num_sessions or self.handler.slots.free < CACHE_POSITIONS or len(self.caches):
                await asyncio.sleep(0.01)


def opening(**changes):
    fields = {"batch": 1, "left_padding": (), "max_length": 64, "codec": "float32"}
    fields |= {"previous": "", "next": "", "next_addresses": (), **changes}
    return Open(os.urandom(16), MANIFEST, 0, NUM_BLOCKS, **fields)


def step(session, position=0, tokens=4, rows=1, hidden=HIDDEN):
    return Step(session, position, (rows, tokens, hidden), "float32", bytes(rows * tokens * hidden * 4))


async def ends(frames):
    """Say whether the server closes the stream soon."""
    async with asyncio.timeout(SOON_S):
        return await frames.receive() is None


@pytest.fixture
async def server(whole, monkeypatch):
    caches = weakref.WeakSet()
    new_cache = whole.new_cache

    def watched(*shape):
        cache = new_cache(*shape)
        caches.add(cache)
        return cache

    monkeypatch.setattr(whole, "new_cache", watched)

    async def dial(peer_id, _protocol, *, addresses=(), timeout_s=5.0):
        if not addresses:
            raise PeerUnreachable("nobody is there")
        if addresses == ("unforeseen",):
            raise Unforeseen
        host, port = addresses[0].split(":")
        return Stream(peer_id, *await asyncio.open_connection(host, int(port)))

    served = Served(whole, MANIFEST, HIDDEN, max_sessions=4, send_timeout_s=0.3)
    async with Engine() as engine:
        server = Server(Handler(served, engine, dial, whole.new_arena(CACHE_POSITIONS), PrefixStore(2**20)), caches)
        listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, limit=2**16)
        server.address = listening.sockets[0].getsockname()
        yield server
        for stream in server.streams:
            stream.writer.transport.abort()
            with contextlib.suppress(OSError):
                await stream.close()
        listening.close()
        await server.until_all_is_free()


async def test_a_bad_push_ends_the_session_its_cache_and_the_clients_stream(server):
    session, control, _ = await server.open(previous=STAGE)
    push, _ = await server.dial(STAGE)
    await push.send(step(session))
    assert isinstance(await control.receive(), Result)
    assert len(server.caches) == 1
    await push.send(step(session, 4, hidden=HIDDEN + 1))
    refusal = await control.receive()
    assert isinstance(refusal, Refuse)
    assert refusal.session == session
    await server.until_all_is_free()  # while both streams are still held by their peers
    assert await ends(control)
    assert await ends(push)


async def test_a_push_stream_that_is_kept_does_not_keep_the_session_of_a_client_that_left(server):
    session, control, _ = await server.open(previous=STAGE)
    push, _ = await server.dial(STAGE)
    await push.send(step(session))
    assert isinstance(await control.receive(), Result)
    await control.close()
    await server.until_all_is_free()
    assert await ends(push)


async def test_an_idle_session_ends_with_all_its_streams(server):
    session, control, _ = await server.open(previous=STAGE)
    push, _ = await server.dial(STAGE)
    await push.send(step(session))
    assert isinstance(await control.receive(), Result)
    assert await server.handler.expire(time.monotonic() + 10_000) == 1
    refusal = await control.receive()
    assert isinstance(refusal, Refuse)
    assert refusal.code == "idle"
    await server.until_all_is_free()
    assert await ends(control)
    assert await ends(push)


async def test_a_client_that_does_not_read_its_results_loses_its_session(server):
    session, control, _ = await server.open(batch=64)
    frame = step(session, tokens=64, rows=64)  # repeated: half a megabyte each, answered from memory

    async def flood():
        for _ in range(200):
            await control.send(frame)

    flooding = asyncio.create_task(flood())
    await server.until_all_is_free()
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)


async def test_a_next_stage_that_does_not_read_is_lost_and_nothing_is_queued_for_it(server):
    taken = []
    deaf = await asyncio.start_server(lambda *pair: taken.append(pair), "127.0.0.1", 0)
    host, port = deaf.sockets[0].getsockname()
    session, control, _ = await server.open(batch=64, next=STAGE, next_addresses=(f"{host}:{port}",))
    frame = step(session, tokens=64, rows=64)

    async def flood():
        for _ in range(200):
            await control.send(frame)

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(SOON_S):
        lost = await control.receive()
    assert lost == StageLost(session, STAGE)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    for _, writer in taken:
        writer.transport.abort()
    deaf.close()


async def test_a_next_stage_that_cannot_be_dialed_leaves_no_session(server):
    control, _ = await server.dial()
    await control.send(opening(next=STAGE))
    refusal = await control.receive()
    assert isinstance(refusal, Refuse)
    assert refusal.code == "next_unreachable"
    assert await ends(control)
    await server.until_all_is_free()


async def test_an_error_that_nobody_foresaw_leaves_no_session(server):
    control, _ = await server.dial()
    await control.send(opening(next=STAGE, next_addresses=("unforeseen",)))
    assert await ends(control)
    await server.until_all_is_free()


async def test_only_one_stream_at_a_time_carries_the_steps_of_a_session(server):
    session, control, _ = await server.open(previous=STAGE)
    first, _ = await server.dial(STAGE)
    await first.send(step(session))
    assert isinstance(await control.receive(), Result)
    second, _ = await server.dial(STAGE)
    await second.send(step(session, 4))
    assert isinstance(await second.receive(), Refuse)
    await first.send(step(session, 4))
    assert isinstance(await control.receive(), Result)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_step_longer_than_the_session_was_opened_for_is_refused_before_it_is_read(server, is_first):
    session, control, _ = await server.open(previous=STAGE)
    push, stream = await server.dial(STAGE)
    if not is_first:
        await push.send(step(session))
        assert isinstance(await control.receive(), Result)
    head = encode(step(session, tokens=2000))[0]
    stream.writer.write(head + bytes(2**16))  # of 250 KiB
    refusal = await control.receive()
    assert isinstance(refusal, Refuse)
    assert refusal.code == "protocol"
    assert "are allowed" in refusal.message
    await server.until_all_is_free()


async def test_a_client_whose_steps_come_from_another_stage_may_not_send_long_frames(server):
    session, control, stream = await server.open(previous=STAGE, batch=64)
    stream.writer.write(encode(step(session, tokens=64, rows=64))[0])  # the payload never comes
    assert isinstance(await control.receive(), Refuse)
    await server.until_all_is_free()
