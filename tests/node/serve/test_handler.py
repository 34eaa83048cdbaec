"""Sessions of a real handler over loopback sockets: whatever ends one, nothing of it stays behind."""

import asyncio
import contextlib
import os
import threading
import time
import weakref

import pytest
import torch

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.members import Stream
from node.engine import Engine
from node.errors import Refused
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.tensors import from_payload, to_payload
from node.serve.admission import Served
from node.serve.handler import Handler
from node.serve.prefixes import PrefixStore
from node.transport import FrameStream
from node.wire import (
    NO_SESSION,
    Accept,
    Adopt,
    Alive,
    Drain,
    Open,
    Probe,
    Refuse,
    Replay,
    Result,
    StageLost,
    Step,
    encode,
)
from tests.families import FAMILIES, NUM_BLOCKS, build

HIDDEN = 32
MANIFEST = bytes(range(32))
CACHE_POSITIONS = 2**16
CLIENT, OTHER, STAGE = (Identity.ephemeral().peer_id for _ in range(3))
SOON_S = 10.0
MANY_SILENT = 40


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

    async def open(self, peer_id=CLIENT, **changes):
        """Open a session; return its id and the client's stream."""
        frames, stream = await self.dial(peer_id)
        opened = opening(**changes)
        await frames.send(opened)
        assert isinstance(await frames.receive(), Accept)
        return opened.session, frames, stream

    async def refused(self, peer_id=CLIENT, **changes):
        """Open a session that is refused; return the refusal."""
        frames, _ = await self.dial(peer_id)
        await frames.send(opening(**changes))
        refusal = await frames.receive()
        assert isinstance(refusal, Refuse)
        return refusal

    async def until_all_is_free(self):
        """Wait until no session, promise or cache is left."""
        async with asyncio.timeout(SOON_S):
            slots = self.handler.slots
            while self.handler.num_sessions or slots.free < slots.total or len(self.caches):
                await asyncio.sleep(0.01)


def opening(**changes):
    fields = {"batch": 1, "left_padding": (), "max_length": 64, "codec": "float32"}
    fields |= {"previous": "", "next": "", "next_addresses": (), **changes}
    return Open(os.urandom(16), MANIFEST, 0, NUM_BLOCKS, **fields)


def step(session, position=0, tokens=4, rows=1, hidden=HIDDEN, crop=None, **changes):
    payload = bytes(rows * tokens * hidden * 4)
    return Step(session, position, (rows, tokens, hidden), "float32", payload, crop, **changes)


async def ends(frames):
    """Say whether the server closes the stream soon."""
    async with asyncio.timeout(SOON_S):
        return await frames.receive() is None


@pytest.fixture
def watched(whole, monkeypatch):
    """The span, and the caches of it that are alive."""
    caches = weakref.WeakSet()
    new_cache = whole.new_cache

    def new_watched(*shape):
        cache = new_cache(*shape)
        caches.add(cache)
        return cache

    monkeypatch.setattr(whole, "new_cache", new_watched)
    return whole, caches


@pytest.fixture
async def server(watched):
    async with serving(watched) as server:
        yield server


@contextlib.asynccontextmanager
async def serving(watched, cache_positions=CACHE_POSITIONS, log_bytes=2**24, **changes):
    """Serve the span on a socket; everything must be free in the end."""
    span, caches = watched

    async def dial(peer_id, _protocol, *, addresses=(), timeout_s=5.0):
        if not addresses:
            raise PeerUnreachable("nobody is there")
        if addresses == ("unforeseen",):
            raise Unforeseen
        host, port = addresses[0].split(":")
        return Stream(peer_id, *await asyncio.open_connection(host, int(port)))

    served = Served(span, MANIFEST, HIDDEN, **{"max_sessions": 4, "send_timeout_s": 0.3, **changes})
    async with Engine() as engine:
        arena = span.new_arena(cache_positions)
        server = Server(Handler(served, engine, dial, arena, PrefixStore(2**20), log_bytes), caches)
        listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, limit=2**16)
        server.address = listening.sockets[0].getsockname()
        yield server
        for stream in server.streams:
            stream.writer.transport.abort()
            with contextlib.suppress(OSError):
                await stream.close()
        listening.close()
        await server.until_all_is_free()


async def test_a_bad_push_of_the_client_ends_the_session_its_cache_and_its_streams(server):
    session, control, _ = await server.open(previous=CLIENT)
    push, _ = await server.dial(CLIENT)
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


async def test_a_bad_push_of_another_stage_is_told_and_the_session_goes_on_with_another(server):
    session, control, _ = await server.open(previous=STAGE)
    push, _ = await server.dial(STAGE)
    await push.send(step(session))
    assert isinstance(await control.receive(), Result)
    await push.send(step(session, 4, hidden=HIDDEN + 1))
    assert await control.receive() == StageLost(session, STAGE)
    assert isinstance(await push.receive(), Refuse)
    await control.send(Adopt(session, 7, OTHER))
    assert await control.receive() == Alive(session, 7, 1, 1)
    stranger, _ = await server.dial(STAGE)
    await stranger.send(step(session, 4))
    assert isinstance(await stranger.receive(), Refuse)
    again, _ = await server.dial(OTHER)
    await again.send(step(session, 0, number=1))  # known, and passed over
    await again.send(step(session, 4, number=2))
    result = await control.receive()
    assert isinstance(result, Result)
    assert result.position == 4
    await control.close()
    await server.until_all_is_free()


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
    frame = step(session, tokens=64, rows=64, crop=0)  # the same again: half a megabyte each

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
    frame = step(session, tokens=64, rows=64, crop=0)

    async def flood():
        for _ in range(200):
            await control.send(frame)

    flooding = asyncio.create_task(flood())
    async with asyncio.timeout(3 * SOON_S):  # Megabytes are computed until every buffer on the way is full.
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
    assert await control.receive() == StageLost(session, STAGE)
    refusal = await push.receive()
    assert isinstance(refusal, Refuse)
    assert refusal.code == "protocol"
    assert "are allowed" in refusal.message
    await control.close()
    await server.until_all_is_free()


async def test_a_client_whose_steps_come_from_another_stage_may_not_send_long_frames(server):
    session, control, stream = await server.open(previous=STAGE, batch=64)
    stream.writer.write(encode(step(session, tokens=64, rows=64))[0])  # the payload never comes
    assert isinstance(await control.receive(), Refuse)
    await server.until_all_is_free()


def text_step(session, hidden, position=0, **changes):
    return Step(session, position, tuple(hidden.shape), "float32", to_payload(hidden, "float32"), **changes)


def random_text(tokens, rows=1, seed=0):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


async def answer(frames, step):
    """Send a step; return the hidden states that come back."""
    await frames.send(step)
    async with asyncio.timeout(SOON_S):
        result = await frames.receive()
    assert isinstance(result, Result), result
    return from_payload(result.payload, result.shape, result.codec, dtype=torch.float32, device=torch.device("cpu"))


def alone(span, hidden):
    return span.forward(hidden, span.new_cache(hidden.shape[1], hidden.shape[0]))


@pytest.fixture
def counted(whole, monkeypatch):
    """Counts the tokens that reach the span."""
    counts = []
    forward_many = whole.forward_many

    def forward(parts):
        counts.extend(part.hidden.shape[0] * part.hidden.shape[1] for part in parts)
        return forward_many(parts)

    monkeypatch.setattr(whole, "forward_many", forward)
    return counts


@pytest.mark.parametrize(("shares_prefixes", "num_computed"), [(False, 130), (True, 2)])
async def test_a_prefix_is_reused_within_a_client_and_across_clients_only_where_the_owner_says_so(
    watched, counted, shares_prefixes, num_computed
):
    span, _ = watched
    text = random_text(130)
    expected = alone(span, text)
    async with serving(watched, shares_prefixes=shares_prefixes) as server:
        for peer_id, num_tokens in ((CLIENT, 130), (CLIENT, 2), (OTHER, num_computed), (OTHER, 2)):
            counted.clear()
            session, control, _ = await server.open(peer_id, max_length=200)
            output = await answer(control, text_step(session, text))
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
            assert sum(counted) == num_tokens
            await control.close()


async def test_sessions_of_another_codec_blocks_or_several_rows_share_no_prefix(watched, counted):
    text = random_text(64)
    payload = to_payload(text, "float32")
    async with serving(watched) as server:
        for changes in ({}, {"codec": "bfloat16"}, {"batch": 2}, {"batch": 2}):
            counted.clear()
            opened = {"batch": 1, "codec": "float32", **changes}
            session, control, _ = await server.open(max_length=64, **opened)
            rows = opened["batch"]
            hidden = text.expand(rows, -1, -1).contiguous()
            codec = opened["codec"]
            payload = to_payload(hidden, codec)
            await control.send(Step(session, 0, tuple(hidden.shape), codec, payload))
            assert isinstance(await control.receive(), Result)
            assert sum(counted) == 64 * rows
            await control.close()


async def test_a_full_cache_refuses_with_a_time_to_come_back_and_takes_sessions_again_later(watched):
    async with serving(watched, cache_positions=128) as server:
        _, control, _ = await server.open(max_length=100)
        refusal = await server.refused(OTHER, max_length=64)
        assert (refusal.code, refusal.retryable) == ("full", True)
        assert refusal.retry_after_ms > 0
        refusal = await server.refused(OTHER, max_length=129)
        assert (refusal.code, refusal.retryable) == ("too_long", False)
        await control.close()
        await server.until_all_is_free()
        await server.open(OTHER, max_length=64)


async def test_the_last_eighth_of_the_cache_is_for_clients_without_a_session(watched):
    async with serving(watched, cache_positions=128, max_sessions=16) as server:
        for _ in range(3):
            await server.open(max_length=32)
        assert (await server.refused(max_length=17)).code == "full"
        await server.open(max_length=16)  # up to the last eighth
        assert server.handler.slots.free == 16
        assert (await server.refused(max_length=16)).code == "full"
        await server.open(OTHER, max_length=16)


async def test_the_last_eighth_of_the_sessions_is_for_clients_without_one(watched):
    async with serving(watched, max_sessions=16) as server:
        for _ in range(14):
            await server.open()
        refusal = await server.refused()
        assert (refusal.code, refusal.retryable) == ("full", True)
        await server.open(OTHER)
        assert (await server.refused(OTHER)).code == "full"
        await server.open(STAGE)
        assert (await server.refused(Identity.ephemeral().peer_id)).code == "full"


async def test_a_session_whose_rows_change_moves_to_another_slot_and_gives_the_old_one_back(watched):
    span, _ = watched
    text, more, last = random_text(9), random_text(1, 3, seed=1), random_text(2, 2, seed=2)
    async with serving(watched, cache_positions=512) as server:
        slots = server.handler.slots
        session, control, _ = await server.open(max_length=32)
        assert slots.free == 512 - 32
        await answer(control, text_step(session, text))
        beams = torch.cat([text.expand(3, -1, -1), more], dim=1)
        output = await answer(control, text_step(session, more, 9, rows=(0, 0, 0)))
        torch.testing.assert_close(output, alone(span, beams)[:, 9:], atol=1e-4, rtol=1e-4)
        assert slots.free == 512 - 96
        beams = torch.cat([beams[[2, 0]], last], dim=1)
        output = await answer(control, text_step(session, last, 10, rows=(2, 0)))
        torch.testing.assert_close(output, alone(span, beams)[:, 10:], atol=1e-4, rtol=1e-4)
        assert slots.free == 512 - 64


async def test_rows_change_where_all_sessions_are_taken(server):
    opened = [await server.open() for _ in range(3)]
    assert (await server.refused()).code == "full", "the last one is kept for a client without any"
    await server.open(OTHER)
    assert (await server.refused("a third client")).code == "full"
    session, control, _ = opened[0]
    await answer(control, text_step(session, random_text(4)))
    output = await answer(control, text_step(session, random_text(1, 2), 4, rows=(0, 0)))
    assert output.shape == (2, 1, HIDDEN)


async def test_rows_that_find_no_room_end_their_session_with_a_refusal(watched):
    async with serving(watched, cache_positions=128) as server:
        session, control, _ = await server.open(max_length=64)
        await answer(control, text_step(session, random_text(4)))
        await control.send(text_step(session, random_text(1, 2), 4, rows=(0, 0)))
        refusal = await control.receive()
        assert isinstance(refusal, Refuse)
        assert (refusal.code, refusal.retryable) == ("full", True)
        await server.until_all_is_free()


class Held:
    """Holds the engine's forwards until it is opened."""

    def __init__(self, span, monkeypatch):
        self.began, self.opened = threading.Event(), threading.Event()
        self._forward_many = span.forward_many
        monkeypatch.setattr(span, "forward_many", self._forward)

    def _forward(self, parts):
        self.began.set()
        assert self.opened.wait(SOON_S)
        return self._forward_many(parts)

    async def until_it_began(self):
        assert await asyncio.to_thread(self.began.wait, SOON_S)


@pytest.mark.parametrize("way", ["close", "expire", "bad push"])
async def test_a_session_that_ends_in_mid_step_keeps_its_slot_until_the_engine_has_returned(watched, monkeypatch, way):
    span, _ = watched
    async with serving(watched, cache_positions=128) as server:
        session, control, _ = await server.open(max_length=128, previous=STAGE)
        push, _ = await server.dial(STAGE)
        held = Held(span, monkeypatch)
        await push.send(text_step(session, random_text(4)))
        await held.until_it_began()
        if way == "close":
            await control.close()
        elif way == "expire":
            assert await server.handler.expire(time.monotonic() + 10_000) == 1
        else:
            await control.send(text_step(session, random_text(4)))  # from the client, who may not
        async with asyncio.timeout(SOON_S):
            while server.handler.num_sessions:
                await asyncio.sleep(0.01)
        assert (await server.refused(OTHER, max_length=16)).code == "full"
        assert server.handler.slots.free == 0
        held.opened.set()
        await server.until_all_is_free()
        other, control, _ = await server.open(OTHER, max_length=128)
        text = random_text(5, seed=3)
        torch.testing.assert_close(await answer(control, text_step(other, text)), alone(span, text), atol=1e-4, rtol=0)


async def test_a_session_that_ends_in_mid_step_leaves_the_others_of_its_forward_right(watched, monkeypatch):
    span, _ = watched
    texts = [random_text(6, seed=seed) for seed in range(3)]
    async with serving(watched) as server:
        sessions = [await server.open(previous=STAGE) for _ in range(3)]
        pushes = [(await server.dial(STAGE))[0] for _ in range(3)]
        held = Held(span, monkeypatch)
        first, first_control, _ = await server.open(OTHER)  # holds the engine while the others gather
        await first_control.send(text_step(first, texts[0]))
        await held.until_it_began()
        for (session, _, _), push, text in zip(sessions, pushes, texts, strict=True):
            await push.send(text_step(session, text))
        await asyncio.sleep(0.05)
        await sessions[1][1].close()
        async with asyncio.timeout(SOON_S):
            while server.handler.num_sessions > 3:
                await asyncio.sleep(0.01)
        held.opened.set()
        for number in (0, 2):
            result = await sessions[number][1].receive()
            output = from_payload(
                result.payload, result.shape, result.codec, dtype=torch.float32, device=torch.device("cpu")
            )
            torch.testing.assert_close(output, alone(span, texts[number]), atol=1e-4, rtol=0)


async def test_sessions_abandoned_at_any_moment_give_all_slots_back(server):
    async def abandon(number):
        frames, stream = await server.dial(CLIENT if number % 2 else OTHER)
        opened = opening(max_length=64)
        await frames.send(opened)
        if number % 4:
            await frames.receive()
            await frames.send(step(opened.session))
        if number % 4 == 2:
            await frames.receive()
        stream.writer.transport.abort()

    for number in range(12):
        await abandon(number)
    await server.until_all_is_free()
    assert server.handler.counters.sessions > 0


@pytest.mark.parametrize("is_open", [False, True])
async def test_the_client_closes_first_when_it_is_told_why_so_that_no_last_word_is_lost(server, is_open):
    if is_open:
        session, frames, stream = await server.open()
        await frames.send(step(session, position=3))
    else:
        frames, stream = await server.dial()
        await frames.send(opening(adapter="unknown"))
    assert isinstance(await frames.receive(), Refuse)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.reader.read(1)
    assert await asyncio.wait_for(stream.reader.read(1), 2) == b""  # who does not close is cut


async def test_a_session_that_ends_by_itself_leaves_its_client_the_time_to_read_why(server):
    _, frames, stream = await server.open()
    await server.handler.expire(time.monotonic() + 10_000)
    assert isinstance(await frames.receive(), Refuse)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.reader.read(1)
    assert await asyncio.wait_for(stream.reader.read(1), 2) == b""


@contextlib.asynccontextmanager
async def next_stage():
    """Yield the address of a stage behind, and a queue of the streams that come to it."""
    streams, taken = asyncio.Queue(), []

    def accept(*pair):
        taken.append(Stream("server", *pair))
        streams.put_nowait(FrameStream(taken[-1]))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**20)
    host, port = listening.sockets[0].getsockname()
    yield f"{host}:{port}", streams
    for stream in taken:
        await stream.close()
    listening.close()


async def test_a_probe_is_answered_while_a_step_waits_for_a_next_stage_that_does_not_read(server):
    async with next_stage() as (address, _):
        session, control, _ = await server.open(previous=CLIENT, batch=64, next=STAGE, next_addresses=(address,))
        push, _ = await server.dial()
        pushing = asyncio.create_task(push.send(step(session, tokens=64, rows=64)))
        async with asyncio.timeout(SOON_S):
            await control.send(Probe(session, 3))
            answer = await control.receive()
        assert isinstance(answer, Alive | StageLost)
        await asyncio.gather(pushing, return_exceptions=True)
        await control.close()
        await server.until_all_is_free()


async def test_the_history_and_the_steps_not_answered_go_to_another_next_stage(server):
    async with next_stage() as (first, first_streams), next_stage() as (second, second_streams):
        session, control, _ = await server.open(previous=CLIENT, next=STAGE, next_addresses=(first,))
        push, _ = await server.dial()
        hidden = random_text(20)
        await push.send(text_step(session, hidden[:, :12]))
        await push.send(text_step(session, hidden[:, 12:13], 12))
        await push.send(text_step(session, hidden[:, 13:20], 13))
        old = await first_streams.get()
        sent = [await old.receive() for _ in range(3)]
        await control.send(Replay(session, 5, OTHER, (second,), answered=2, stages=1))
        new = await second_streams.get()
        history, again = await new.receive(), await new.receive()
        assert (history.position, history.shape[1], history.replay, history.number) == (0, 13, 1, 2)
        assert bytes(history.payload) == b"".join(bytes(each.payload) for each in sent[:2])
        assert (again.position, again.number, again.replay) == (13, 3, 0)
        assert bytes(again.payload) == bytes(sent[2].payload)
        assert await control.receive() == Alive(session, 5, 3, 3)
        assert await ends(old)
        await push.send(text_step(session, hidden[:, :1], 20))
        assert (await new.receive()).position == 20
        await control.close()
        await server.until_all_is_free()


async def test_a_stage_that_is_given_a_history_answers_from_there_on(server):
    hidden = random_text(20)
    session, whole, _ = await server.open(previous=CLIENT)
    push, _ = await server.dial()
    await push.send(text_step(session, hidden))
    expected = await whole.receive()
    await whole.close()
    session, control, _ = await server.open(previous=STAGE, steps=4)
    push, _ = await server.dial(STAGE)
    await push.send(text_step(session, hidden[:, :8], replay=1))
    await push.send(text_step(session, hidden[:, 8:15], 8, replay=1))
    await push.send(text_step(session, hidden[:, 15:], 15, number=5))
    result = await control.receive()
    assert result.position == 15
    assert_close(result, expected, 15)
    await push.send(text_step(session, hidden[:, :1], 20, replay=1))
    assert await control.receive() == StageLost(session, STAGE)  # history comes first
    await control.close()
    await server.until_all_is_free()


def assert_close(result, expected, first):
    def numbers(frame):
        return from_payload(
            bytearray(frame.payload), frame.shape, "float32", dtype=torch.float32, device=torch.device("cpu")
        )

    torch.testing.assert_close(numbers(result), numbers(expected)[:, first:], atol=1e-4, rtol=1e-4)


async def test_a_replay_of_what_was_never_handed_on_is_refused(server):
    async with next_stage() as (address, _):
        session, control, _ = await server.open(next=STAGE, next_addresses=(address,))
        await control.send(Replay(session, 1, OTHER, (address,), answered=1, stages=1))
        refusal = await control.receive()
        assert refusal.code == "protocol"
        await server.until_all_is_free()


async def test_the_memory_of_what_is_handed_on_is_bounded(watched):
    async with next_stage() as (address, _):
        per_session = 64 * HIDDEN * 4
        async with serving(watched, log_bytes=2 * per_session) as server:
            kept = [await server.open(peer_id, next=STAGE, next_addresses=(address,)) for peer_id in (CLIENT, OTHER)]
            refusal = await server.refused(STAGE, next=STAGE, next_addresses=(address,))
            assert (refusal.code, refusal.retryable) == ("full", True)
            assert (await server.refused(STAGE, batch=3, next=STAGE, next_addresses=(address,))).code == "too_long"
            await kept[0][1].close()
            async with asyncio.timeout(SOON_S):
                while server.handler.num_sessions > 1:
                    await asyncio.sleep(0.01)
            await server.open(STAGE, next=STAGE, next_addresses=(address,))


LEAVING = Refused("draining", "This server is leaving; choose another.", retryable=True)


async def test_behind_closed_doors_sessions_go_on_and_new_ones_are_refused(server):
    session, frames, _ = await server.open()
    server.handler.close_doors(LEAVING)
    refusal = await server.refused()
    assert (refusal.code, refusal.retryable) == ("draining", True)
    await frames.send(step(session))
    assert isinstance(await frames.receive(), Result)
    server.handler.open_doors()
    await server.open()


async def test_clients_are_asked_to_go_elsewhere_and_waited_for(server):
    session, frames, stream = await server.open()
    handing_over = asyncio.create_task(server.handler.hand_over(SOON_S))
    assert await frames.receive() == Drain(session, int(SOON_S))
    await asyncio.sleep(0.05)
    assert not handing_over.done()
    await stream.close()
    assert await handing_over


async def test_who_does_not_go_elsewhere_is_waited_for_only_so_long_and_then_told_why(server):
    session, frames, _ = await server.open()
    assert not await server.handler.hand_over(0.2)
    await server.handler.end_all(LEAVING)
    assert isinstance(await frames.receive(), Drain)
    refusal = await frames.receive()
    assert (refusal.session, refusal.code) == (session, "draining")


async def test_an_empty_server_has_handed_over_at_once(server):
    assert await server.handler.hand_over(SOON_S)


async def test_steps_and_outputs_are_moved_no_faster_than_the_donor_allows(watched):
    async with serving(watched, max_bytes_per_s=4096.0) as server:
        session, frames, _ = await server.open()
        started_s = time.monotonic()
        for position in range(0, 24, 4):  # Half a kilobyte in, as much out.
            await frames.send(step(session, position))
            assert isinstance(await frames.receive(), Result)
        assert time.monotonic() - started_s > (6 * 1024 - 1024 - 512) / 4096


async def test_a_step_that_waits_for_its_bandwidth_counts_as_taken_and_not_as_lost(watched):
    async with serving(watched, max_bytes_per_s=1000.0) as server:
        pushing, control, _ = await server.open(OTHER, previous=STAGE)
        previous, _ = await server.dial(STAGE)
        await previous.send(step(pushing, tokens=32))
        while True:
            await control.send(Probe(pushing, 1))
            sign = await control.receive()
            if sign.taken:
                break
        assert (sign.taken, sign.handed_on) == (1, 0)


async def test_a_stage_has_handed_on_nothing_before_it_has_the_whole_history(server):
    hidden = random_text(20)
    session, control, _ = await server.open(previous=STAGE, steps=4)
    push, _ = await server.dial(STAGE)

    async def handed_on():
        await asyncio.sleep(0.1)
        await control.send(Probe(session, 1))
        return (await control.receive()).handed_on

    await push.send(text_step(session, hidden[:, :8], replay=1))
    assert await handed_on() == 0
    await push.send(text_step(session, hidden[:, 8:15], 8, replay=1, number=4))
    assert await handed_on() == 4
    await push.send(text_step(session, hidden[:, 15:], 15, number=5))
    assert (await control.receive()).position == 15
    assert await handed_on() == 5


async def test_a_history_that_ends_with_another_step_than_was_said_is_refused(server):
    session, control, _ = await server.open(previous=STAGE, steps=4)
    push, _ = await server.dial(STAGE)
    await push.send(text_step(session, random_text(8), replay=1, number=5))
    refusal = await control.receive()
    assert (refusal.session, refusal.code) == (session, "protocol")
    assert "ends with step 4, not with step 5" in refusal.message


async def test_a_handler_that_is_closed_ends_streams_without_a_session_too(server):
    silent, _ = await server.dial()
    await asyncio.sleep(0.1)
    _, frames, _ = await server.open()
    await server.handler.close(LEAVING)
    assert await ends(silent)
    assert isinstance(await frames.receive(), Refuse)
    assert server.handler.num_streams == 0
    assert (await server.refused()).code == "draining"


async def test_a_peer_may_not_hold_many_streams_open_that_say_nothing(server):
    silent = [(await server.dial())[0] for _ in range(MANY_SILENT)]
    await asyncio.sleep(0.1)
    refusal = await silent[-1].receive()
    assert (refusal.code, refusal.session) == ("protocol", NO_SESSION)
    assert "say nothing" in refusal.message
    assert await ends(silent[-1])
    assert server.handler.counters.broken > 0
    await server.open(OTHER)
    for frames in silent:
        await frames.close()
    await asyncio.sleep(0.1)
    await server.open()


async def test_streams_of_a_stage_whose_sessions_have_not_begun_may_be_silent(watched):
    async with serving(watched, max_sessions=2 * MANY_SILENT) as server:
        sessions = [await server.open(previous=STAGE, max_length=8) for _ in range(MANY_SILENT)]
        for _ in sessions:
            await server.dial(STAGE)
        await asyncio.sleep(0.1)
        assert server.handler.counters.broken == 0
        assert server.handler.num_streams == 2 * MANY_SILENT


async def test_a_session_that_opens_while_others_are_asked_to_leave_is_asked_too(server):
    server.handler.ask_to_leave(2.0**40)
    session, frames, _ = await server.open()
    asked = await frames.receive()
    assert (asked.session, asked.seconds) == (session, 2**20)
