"""A real handler over loopback sockets embeds ids and answers with logits or samples, and refuses what it must."""

import asyncio
import contextlib
import os
import struct

import pytest
import torch
from transformers import AutoModelForCausalLM

from dht.identity import Identity
from dht.membership.members import Stream
from node.engine import Engine
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.ends import build_ends
from node.model.sampling import Sampling, choose
from node.model.span import build_span
from node.model.tokens import ids_from_payload, logits_from_payload
from node.serve.admission import Served
from node.serve.handler import Handler
from node.transport import FrameStream
from node.wire import IDS, LOGITS, MAX_TOP, Accept, Open, Refuse, Result, Step
from tests.families import FAMILIES, NUM_BLOCKS, VOCABULARY, build

HERE = {"dtype": torch.float32, "device": torch.device("cpu")}
MANIFEST = bytes(range(32))
HIDDEN = 32
CACHE_POSITIONS = 2**12
CLIENT = Identity.ephemeral().peer_id
SOON_S = 10.0
IDS_OF_TEXT = (5, 9, 60, 31, 7)
SAMPLING = (1.5, 40, 0.9, 77)


class Model:
    """gpt2: its positions have embeddings, so that those can be exceeded, too."""

    def __init__(self, directory):
        build("gpt2", FAMILIES["gpt2"]).save_pretrained(directory)
        self.local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self.checkpoint = Checkpoint.open(str(directory))
        self.parameters = find_end_parameters(self.checkpoint.config)

    def span(self, start, end):
        return build_span(self.checkpoint.config, self.checkpoint.load_span(start, end, **HERE), start, end, **HERE)

    def ends(self, *, embeds, heads):
        tensors = self.checkpoint.load_client(**HERE)
        return build_ends(self.checkpoint.config, tensors, self.parameters, embeds=embeds, heads=heads, **HERE)

    @torch.no_grad()
    def logits(self, *rows):
        return self.local(torch.tensor(rows)).logits


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(tmp_path_factory.mktemp("model"))


@contextlib.asynccontextmanager
async def serving(span, ends):
    """Yield a function that opens a session, and the handler."""
    streams = []
    async with Engine() as engine:

        async def dial(*_args, **_options):
            raise AssertionError("nobody is dialled here")

        served = Served(span, MANIFEST, HIDDEN, num_blocks=NUM_BLOCKS, ends=ends)
        handler = Handler(served, engine, dial, span.new_arena(CACHE_POSITIONS))

        async def accept(reader, writer):
            await handler.handle(Stream(CLIENT, reader, writer))

        listening = await asyncio.start_server(accept, "127.0.0.1", 0, limit=2**16)

        async def open_session(**changes):
            pair = await asyncio.open_connection(*listening.sockets[0].getsockname(), limit=2**16)
            frames = FrameStream(Stream("server", *pair))
            streams.append(frames)
            fields = {"batch": 1, "left_padding": (), "max_length": 200, "codec": "float32", "previous": ""}
            fields |= {"next": "", "next_addresses": (), "start": span.start, "end": span.end, **changes}
            opened = Open(os.urandom(16), MANIFEST, **fields)
            await frames.send(opened)
            return opened.session, frames, await receive(frames)

        yield open_session, handler
        for frames in streams:
            await frames.close()
        listening.close()
        async with asyncio.timeout(SOON_S):
            while handler.num_sessions or handler.slots.free < CACHE_POSITIONS:
                await asyncio.sleep(0.01)


async def receive(frames):
    async with asyncio.timeout(SOON_S):
        return await frames.receive()


def ids_step(session, position, *rows, **changes):
    payload = b"".join(struct.pack(f"<{len(row)}I", *row) for row in rows)
    return Step(session, position, (len(rows), len(rows[0]), 1), IDS, payload, **changes)


async def test_ids_become_logits_of_the_positions_asked_for(model):
    whole = model.logits(IDS_OF_TEXT)
    async with serving(model.span(0, NUM_BLOCKS), model.ends(embeds=True, heads=True)) as (open_session, _):
        session, frames, answer = await open_session(embed=True, top=MAX_TOP)
        assert isinstance(answer, Accept)
        await frames.send(ids_step(session, 0, IDS_OF_TEXT[:3]))
        await frames.send(ids_step(session, 3, IDS_OF_TEXT[3:], logits_to_keep=2))
        for position, positions in ((0, [2]), (3, [3, 4])):
            result = await receive(frames)
            assert isinstance(result, Result)
            assert (result.position, result.codec) == (position, LOGITS)
            assert result.shape == (1, len(positions), VOCABULARY)
            ids, values = logits_from_payload(result.payload, result.shape)
            expected = whole[:, positions]
            torch.testing.assert_close(values, expected.gather(-1, ids), atol=1e-5, rtol=1e-5)
            assert torch.equal(values, values.sort(dim=-1, descending=True).values)


async def test_a_repeated_step_is_answered_with_the_same_sample_which_is_the_pure_samplers(model):
    rows = (IDS_OF_TEXT, IDS_OF_TEXT[::-1])
    expected = choose(model.logits(*rows)[:, -1], Sampling(*SAMPLING), len(IDS_OF_TEXT))
    async with serving(model.span(0, NUM_BLOCKS), model.ends(embeds=True, heads=True)) as (open_session, _):
        session, frames, _ = await open_session(embed=True, sampling=SAMPLING, batch=2)
        step = ids_step(session, 0, *rows)
        for frame in (step, step, ids_step(session, 0, *rows, crop=0)):
            await frames.send(frame)
            result = await receive(frames)
            assert isinstance(result, Result)
            assert (result.codec, result.shape) == (IDS, (2, 1, 1))
            assert torch.equal(ids_from_payload(result.payload, (2,)), expected)


async def test_a_stage_may_embed_alone_and_hands_hidden_states_on(model):
    async with serving(model.span(0, 2), model.ends(embeds=True, heads=False)) as (open_session, _):
        session, frames, _ = await open_session(embed=True)
        await frames.send(ids_step(session, 0, IDS_OF_TEXT))
        result = await receive(frames)
        assert (result.codec, result.shape) == ("float32", (1, len(IDS_OF_TEXT), HIDDEN))


@pytest.mark.parametrize(
    ("embeds", "heads", "span", "asked"),
    [
        (True, False, (0, 4), {"embed": True, "top": 5}),
        (False, True, (0, 4), {"embed": True, "top": 5}),
        (True, True, (0, 4), {"top": 5, "end": 3}),
        (True, True, (0, 4), {"sampling": SAMPLING, "end": 3}),
        (True, True, (0, 4), {"embed": True, "start": 1}),
        (None, None, (0, 4), {"embed": True}),
        (None, None, (0, 4), {"top": 5}),
    ],
)
async def test_an_end_that_a_server_does_not_have_is_refused_politely(embeds, heads, span, asked, model):
    ends = None if embeds is None else model.ends(embeds=embeds, heads=heads)
    async with serving(model.span(*span), ends) as (open_session, handler):
        _, _, answer = await open_session(**asked)
        assert isinstance(answer, Refuse)
        assert (answer.code, answer.retryable) == ("no_ends", True)
        assert handler.num_sessions == 0


@pytest.mark.parametrize(
    ("position", "ids", "named"),
    [
        (0, (VOCABULARY,), "vocabulary"),
        (0, (1, 2**32 - 1), "vocabulary"),
        (0, (1,) * 129, "embeddings for 128"),
    ],
)
async def test_an_id_or_a_position_without_an_embedding_ends_its_own_session_alone(position, ids, named, model):
    async with serving(model.span(0, NUM_BLOCKS), model.ends(embeds=True, heads=True)) as (open_session, _):
        session, frames, _ = await open_session(embed=True, top=5)
        other, untouched, _ = await open_session(embed=True, top=5)
        await frames.send(ids_step(session, position, ids))
        refusal = await receive(frames)
        assert isinstance(refusal, Refuse)
        assert refusal.session == session
        assert named in refusal.message
        assert await receive(frames) is None
        await untouched.send(ids_step(other, 0, IDS_OF_TEXT))
        assert isinstance(await receive(untouched), Result)


async def test_hidden_states_that_are_no_numbers_get_an_answer_and_harm_nobody(model):
    async with serving(model.span(3, 4), model.ends(embeds=False, heads=True)) as (open_session, _):
        for asked, width in (({"top": 5}, 5), ({"sampling": SAMPLING}, 1), ({"sampling": (0.0, 0, 1.0, 0)}, 1)):
            session, frames, _ = await open_session(**asked)
            payload = struct.pack(f"<{HIDDEN}f", *[float("nan")] * HIDDEN)
            await frames.send(Step(session, 0, (1, 1, HIDDEN), "float32", payload))
            result = await receive(frames)
            assert isinstance(result, Result)
            assert result.shape == (1, 1, width)
            if width == 1:
                assert 0 <= int(ids_from_payload(result.payload, (1,))) < VOCABULARY
