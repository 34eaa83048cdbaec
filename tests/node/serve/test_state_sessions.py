"""Sessions over layers with a state, through a real handler: nothing is shared or taken back, and memory is counted."""

import asyncio
import contextlib
import os

import pytest
import torch

from dht.identity import Identity
from dht.membership.members import Stream
from node.engine import Engine
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.tensors import from_payload, to_payload
from node.serve.admission import Served
from node.serve.handler import Handler
from node.serve.prefixes import CHUNK, PrefixStore
from node.serve.slots import PAGE
from node.transport import FrameStream
from node.wire import Accept, Open, Refuse, Result, Step
from tests.families import NUM_BLOCKS, STATEFUL, build

HIDDEN = 32
MANIFEST = bytes(range(32))
CACHE_POSITIONS = 2**14
CLIENT = Identity.ephemeral().peer_id
SOON_S = 10.0


@pytest.fixture(scope="module", params=["jamba", "lfm2"])
def span(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build(request.param, STATEFUL[request.param]).save_pretrained(directory)
    checkpoint, dtype = Checkpoint.open(str(directory)), torch.float32
    tensors = checkpoint.load_span(0, NUM_BLOCKS, dtype=dtype)
    return build_span(checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=dtype, device=torch.device("cpu"))


@pytest.fixture
async def handler(span):
    async def dial(*_, **__):
        raise AssertionError("there is no next stage")

    async with Engine() as engine:
        yield Handler(Served(span, MANIFEST, HIDDEN), engine, dial, span.new_arena(CACHE_POSITIONS), PrefixStore(2**24))


@contextlib.asynccontextmanager
async def session_at(handler, rows=1, max_length=64):
    """Open a session over loopback and yield its id and the client's frames."""

    async def accept(reader, writer):
        await handler.handle(Stream(CLIENT, reader, writer))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    stream = Stream("server", *await asyncio.open_connection(*listening.sockets[0].getsockname()))
    frames = FrameStream(stream)
    opened = Open(
        os.urandom(16),
        MANIFEST,
        0,
        NUM_BLOCKS,
        rows,
        (),
        max_length,
        "float32",
        previous="",
        next="",
        next_addresses=(),
    )
    await frames.send(opened)
    assert isinstance(await frames.receive(), Accept)
    yield opened.session, frames
    await stream.close()
    listening.close()
    async with asyncio.timeout(SOON_S):
        while handler.num_sessions or handler.slots.free < CACHE_POSITIONS:
            await asyncio.sleep(0.01)


def hidden_of(tokens, rows=1):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))


async def run(frames, session, hidden, position, **changes):
    payload = to_payload(hidden, "float32")
    await frames.send(Step(session, position, tuple(hidden.shape), "float32", payload, **changes))
    result = await frames.receive()
    if not isinstance(result, Result):
        return result
    return from_payload(result.payload, result.shape, "float32", dtype=torch.float32, device=torch.device("cpu"))


async def test_sessions_that_begin_alike_compute_each_its_own_beginning(handler, span):
    text = hidden_of(2 * CHUNK + 3)
    expected = span.forward(text, span.new_cache(text.shape[1]))
    for _ in range(2):
        async with session_at(handler, max_length=text.shape[1]) as (session, frames):
            first = await run(frames, session, text[:, :-1], 0)
            last = await run(frames, session, text[:, -1:], text.shape[1] - 1)
            outputs = torch.cat([first, last], dim=1)
            torch.testing.assert_close(outputs, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


async def test_a_step_that_takes_the_history_back_ends_the_session_with_the_reason(handler):
    async with session_at(handler) as (session, frames):
        await run(frames, session, hidden_of(5), 0)
        refusal = await run(frames, session, hidden_of(1), 3, crop=3)
        assert isinstance(refusal, Refuse)
        assert "cannot be taken back from position 5 to 3; open a new session" in refusal.message
        assert await frames.receive() is None


async def test_rows_that_change_in_number_go_on_from_the_states_of_the_rows_chosen(handler, span):
    past, following = hidden_of(6, rows=2), hidden_of(1, rows=3)
    rows = [1, 0, 1]
    alone = span.new_cache(7, 3)
    span.forward(past[rows], alone)
    expected = span.forward(following, alone)
    async with session_at(handler, rows=2) as (session, frames):
        await run(frames, session, past, 0)
        output = await run(frames, session, following, 6, rows=tuple(rows))
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rows", "max_length"), [(1, 64), (8, 20)])
async def test_a_session_takes_of_the_cache_what_its_states_take(handler, span, rows, max_length):
    assert span.state_positions > 0
    async with session_at(handler, rows, max_length):
        wanted = rows * (max_length + span.state_positions)
        assert CACHE_POSITIONS - handler.slots.free == -(-wanted // PAGE) * PAGE
