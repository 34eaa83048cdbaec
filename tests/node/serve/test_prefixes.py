"""What sessions of one scope have in common is computed once, and gives what it would have given without."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
import torch

from node.engine import Engine
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.tensors import from_payload, to_payload
from node.serve.computation import Computation, SpanSteps, StepJob
from node.serve.prefixes import CHUNK, Chunk, PrefixChain, PrefixStore, scope_of
from node.serve.session import Compute
from node.wire import Open, Step
from tests.families import FAMILIES, build

HIDDEN, MAX_LENGTH = 32, 700
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def span(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build("llama", {**FAMILIES["llama"], "max_position_embeddings": 1024}).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(1, 3, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, 1, 3, dtype=torch.float32, device=CPU)


@pytest.fixture
def computed(span, monkeypatch):
    """The number of tokens of every forward that reaches the span."""
    counts = []
    forward_many = span.forward_many

    def forward(parts):
        counts.append(sum(part.hidden.shape[0] * part.hidden.shape[1] for part in parts))
        return forward_many(parts)

    monkeypatch.setattr(span, "forward_many", forward)
    return counts


@pytest.fixture
def store():
    return PrefixStore(2**24)


def text(tokens, seed=0, rows=1):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


class Session:
    """A session, and a twin of it that reuses nothing."""

    def __init__(self, span, store, scope=b"mine"):
        chain = PrefixChain(store, hashlib.sha256(scope).digest())
        self.span, self.group = span, SpanSteps(span)
        self.computation = Computation(span, span.new_cache(MAX_LENGTH), chain)
        self.twin = span.new_cache(MAX_LENGTH)
        self.rows = 1

    def job(self, hidden, crop=None, rows=None):
        position = crop if crop is not None else self.computation.length
        step = Step(bytes(16), position, tuple(hidden.shape), "float32", to_payload(hidden, "float32"), crop, rows)
        into = None
        if rows is not None and len(rows) != self.rows:
            self.rows, into = len(rows), self.span.new_cache(MAX_LENGTH, len(rows)).buffers
        return StepJob(self.group, self.computation, Compute(step, crop, rows, ()), "client", into)

    def run(self, hidden, chunk=None, **changes):
        """Run one step as the engine does, in pieces of at most ``chunk``; check it against the twin."""
        job = self.job(hidden, **changes)
        job.prepare()
        while job.positions_left:
            assert self.group.run([(job, min(job.positions_left, chunk or job.positions_left))]) == [None]
            job.prepare()
        self.check(job.result(), hidden, **changes)

    def check(self, result, hidden, crop=None, rows=None):
        payload, shape = result
        output = from_payload(payload, shape, "float32", dtype=torch.float32, device=CPU)
        if crop is not None:
            self.twin.crop_to(crop)
        if rows is not None:
            self.twin.select_rows(torch.tensor(rows), self.span.new_cache(MAX_LENGTH, len(rows)).buffers)
        expected = self.span.forward(hidden, self.twin)
        torch.testing.assert_close(output, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
        assert self.computation.length == self.twin.length


def test_equal_text_in_one_scope_is_computed_once(span, store, computed):
    for expected in ([200], [200 - 3 * CHUNK], [200 - 3 * CHUNK]):
        computed.clear()
        session = Session(span, store)
        session.run(text(200))
        assert computed == expected
        session.run(text(5, seed=1))  # what follows stands on what was copied
    assert store.num_hits == 6


def test_text_that_is_known_whole_reaches_the_span_not_at_all(span, store, computed):
    Session(span, store).run(text(2 * CHUNK))
    computed.clear()
    session = Session(span, store)
    session.run(text(2 * CHUNK))
    assert computed == []
    session.run(text(1, seed=1))
    assert computed == [1]


def test_texts_are_shared_as_far_as_they_agree(span, store, computed):
    one = text(3 * CHUNK)
    Session(span, store).run(one)
    other = one.clone()
    other[0, 2 * CHUNK - 1, 0] += 1e-3  # the last position of the second chunk
    computed.clear()
    Session(span, store).run(other)
    assert sum(computed) == 2 * CHUNK
    computed.clear()
    Session(span, store).run(torch.cat([text(CHUNK, seed=2), one[:, CHUNK:]], dim=1))
    assert sum(computed) == 3 * CHUNK, "an equal chunk behind another beginning is not the same"


def test_another_scope_shares_nothing(span, store, computed):
    Session(span, store, b"mine").run(text(2 * CHUNK))
    computed.clear()
    Session(span, store, b"theirs").run(text(2 * CHUNK))
    assert sum(computed) == 2 * CHUNK
    assert store.num_hits == 0


@pytest.mark.parametrize(
    "lengths", [(10, 200), (CHUNK, CHUNK, 30), (CHUNK - 1, 1, CHUNK), (100, 28, CHUNK, 64), (300,)]
)
@pytest.mark.parametrize("chunk", [None, 7, 50, CHUNK, 100])
def test_steps_and_pieces_of_any_length_give_what_they_give_without_reuse(span, store, lengths, chunk):
    hidden = text(sum(lengths))
    for _ in range(2):
        session = Session(span, store)
        for piece in hidden.split(lengths, dim=1):
            session.run(piece, chunk)
        session.run(text(3, seed=1), chunk)
    whole = Session(span, store)
    whole.run(hidden)


@pytest.mark.parametrize("crop", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 150])
def test_a_session_that_crops_goes_on_right_and_shares_what_is_left(span, store, crop):
    known, hidden = text(3 * CHUNK, seed=1), text(3 * CHUNK)
    Session(span, store).run(torch.cat([hidden[:, :crop], known], dim=1))
    session = Session(span, store)
    session.run(hidden)
    num_hits = store.num_hits
    session.run(known, crop=crop)
    assert (store.num_hits - num_hits) == (3 if crop % CHUNK == 0 else 0)
    session.run(text(CHUNK, seed=2))
    session.run(text(2, seed=3), crop=CHUNK // 2)


def test_a_session_whose_rows_change_shares_no_more(span, store):
    session = Session(span, store)
    session.run(text(2 * CHUNK))
    num_chunks = len(store._chunks)
    session.run(text(CHUNK, seed=1, rows=2), rows=(0, 0))
    session.run(text(CHUNK, seed=2, rows=2))
    session.run(text(CHUNK, seed=1), rows=(1,))
    session.run(text(CHUNK), crop=0)
    assert len(store._chunks) == num_chunks
    assert store.num_hits == 0


def test_a_session_that_ends_takes_nothing_from_others(span, store, computed):
    first = Session(span, store)
    first.run(text(2 * CHUNK))
    for keys, values in first.computation.cache.buffers:  # its slot goes to somebody else
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    first.computation.drop()
    computed.clear()
    Session(span, store).run(text(2 * CHUNK))
    assert computed == []


def chunk_of(num_bytes):
    assert num_bytes % 4 == 0
    return Chunk(torch.zeros(num_bytes // 4), [])


def test_the_store_stays_within_its_bytes_and_forgets_what_was_used_least_recently():
    store = PrefixStore(100)
    for name in (b"a", b"b"):
        store.keep(name, chunk_of(40))
    assert store.num_bytes == 80
    assert store.find(b"a") is not None
    store.keep(b"c", chunk_of(40))
    assert store.num_bytes == 80
    assert store.find(b"b") is None
    assert store.find(b"a") is not None
    assert store.find(b"c") is not None
    store.keep(b"d", chunk_of(100))
    assert (store.num_bytes, store.find(b"a"), store.find(b"c")) == (100, None, None)
    store.keep(b"e", chunk_of(104))
    assert store.num_bytes == 100
    assert store.find(b"e") is None
    store.keep(b"d", chunk_of(40))
    assert store.num_bytes == 100, "what is kept already is not kept twice"


def test_a_small_store_serves_what_it_can(span):
    size = CHUNK * (HIDDEN + 2 * (16 + 16)) * 4  # of one chunk: output, keys and values of two layers, float32
    probe = PrefixStore(2**20)
    Session(span, probe).run(text(CHUNK))
    assert probe.num_bytes == size
    store = PrefixStore(3 * size)
    for seed in range(4):
        Session(span, store).run(text(2 * CHUNK, seed=seed))
        assert store.num_bytes <= 3 * size
        Session(span, store).run(text(2 * CHUNK, seed=seed))
    assert store.num_hits == 8


COMMON, OWN, NUM_SESSIONS = 512, 6, 16


def prompts():
    return [torch.cat([text(COMMON), text(OWN, seed=100 + number)], dim=1) for number in range(NUM_SESSIONS)]


async def test_sixteen_sessions_one_after_another_compute_their_common_prefix_once(span, store, computed):
    async with Engine() as engine:
        for hidden in prompts():
            session = Session(span, store)
            session.check(await engine.run(session.job(hidden)), hidden)
    assert sum(computed) == COMMON + NUM_SESSIONS * OWN


async def test_sixteen_sessions_at_once_compute_their_common_prefix_once(span, store, computed):
    sessions = [Session(span, store) for _ in range(NUM_SESSIONS)]
    async with asyncio.timeout(60), Engine() as engine:
        results = await asyncio.gather(
            *(engine.run(session.job(hidden)) for session, hidden in zip(sessions, prompts(), strict=True))
        )
    assert sum(computed) == COMMON + NUM_SESSIONS * OWN
    for session, result, hidden in zip(sessions, results, prompts(), strict=True):
        session.check(result, hidden)


async def test_sixteen_sessions_among_decoders_compute_their_common_prefix_once(span, store, computed):
    """Where somebody decodes, the prefix is cut into short chunks that the sessions compute in turn."""
    decoder = Session(span, store, b"decoder")
    sessions = [Session(span, store) for _ in range(NUM_SESSIONS)]
    async with asyncio.timeout(60), Engine() as engine:
        await engine.run(decoder.job(text(1)))
        results = await asyncio.gather(
            *(engine.run(session.job(hidden)) for session, hidden in zip(sessions, prompts(), strict=True))
        )
    assert sum(computed) == 1 + COMMON + NUM_SESSIONS * OWN
    for session, result, hidden in zip(sessions, results, prompts(), strict=True):
        session.check(result, hidden)


def test_sessions_share_only_what_is_of_one_model_span_codec_adapter_and_owner():
    opened = Open(bytes(16), bytes(32), 0, 4, 1, (), 64, "float32", "", "", ())
    others = [
        replace(opened, manifest=bytes(31) + b"1"),
        replace(opened, start=1),
        replace(opened, end=3),
        replace(opened, codec="int8"),
        replace(opened, embed=True),
        replace(opened, adapter="poet"),
    ]
    scopes = {scope_of(each, "client") for each in (opened, *others)} | {scope_of(opened, owner) for owner in ("x", "")}
    assert len(scopes) == len(others) + 3
    again = replace(opened, session=bytes([1] * 16), max_length=100, next="", previous="")
    assert scope_of(again, "client") == scope_of(opened, "client")


@pytest.mark.parametrize("piece", [20, 32, 48, 100])
def test_chunks_are_kept_of_a_step_that_is_run_in_smaller_pieces(span, store, computed, piece):
    Session(span, store).run(text(200), chunk=piece)
    computed.clear()
    Session(span, store).run(text(200))
    assert computed == [200 - 3 * CHUNK]


def test_pieces_of_two_steps_make_no_chunk(span, store):
    session = Session(span, store)
    session.run(text(40), chunk=20)
    session.run(text(200, seed=1), chunk=20)
    assert store.num_bytes == 0
