"""Single tokens in static shapes give what each session gives alone, and touch no other memory than their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from node.model.arena import RESERVED, whole_of
from node.model.captured import Captured, CapturedCalls
from node.model.checkpoint import Checkpoint
from node.model.ragged import Part
from node.model.span import build_span
from node.model.static_decode import MAX_ROWS, SHORTEST, StaticDecode, length_bucket, row_bucket
from tests.families import FAMILIES, NUM_BLOCKS, STATEFUL, WINDOW, build

CHECKED = ("llama", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "deepseek_v3", "qwen2_moe", "olmo3", "phi")
"""Grouped heads, sliding windows, capped scores, sinks, latent attention, experts, learned positions."""
TOLERANCE = 1e-4
"""Of the largest output."""
CAPACITY = 2 * WINDOW + 12
CPU = torch.device("cpu")


ASKING = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "bincount",
    "lift_fresh",
}
"""Operations that a graph cannot hold: the host waits for a value, or makes a tensor of one of its own."""


class Asked(TorchDispatchMode):
    """Notes the operations of ``ASKING`` that are run within."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexes_by_mask = name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        if name in ASKING or indexes_by_mask:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def span_of(family, directory, values=None, blocks=(0, NUM_BLOCKS), device=CPU):
    build(family, values or {**FAMILIES, **STATEFUL}[family]).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(*blocks, dtype=torch.float32)
    span = build_span(checkpoint.config, tensors, *blocks, dtype=torch.float32, device=device)
    span.find_static_decode(span._config)
    return span


@pytest.fixture
def llama(tmp_path):
    return span_of("llama", tmp_path)


def captured_calls():
    """Capture as a graph does: the same work again, from inputs and into a result that stay where they are."""

    def capture(work):
        output = work().clone()
        return Captured(lambda: output.copy_(work()), output)

    return CapturedCalls(capture)


class Room:
    """An arena full of what is no number, with slots of sessions that each also run alone."""

    def __init__(self, span, num_positions, seed=0):
        self.span, self.num_positions = span, num_positions
        self.arena = span.new_arena(num_positions)
        for part in self.parts():
            heads = part.shape[0] // (num_positions + RESERVED)
            part[: heads * num_positions] = torch.nan
            part[heads * (num_positions + 1) :] = torch.nan
        self.generator = torch.Generator().manual_seed(seed)
        self.start = 0

    def parts(self):
        return [whole_of(part) for pair in self.arena.place(0, 1, 1) for part in pair]

    def session(self, rows, length, capacity=CAPACITY, gap=3):
        """Return a session's cache in the arena and one of its own, with the same ``length`` positions."""
        self.start += gap
        buffers = self.arena.place(self.start, rows, capacity)
        self.start += rows * capacity
        pair = [self.span.new_cache(capacity, rows, buffers), self.span.new_cache(capacity, rows)]
        if length:
            hidden = self.hidden(rows, length)
            for cache in pair:
                self.span.forward(hidden, cache)
        return pair

    def hidden(self, rows, tokens=1):
        shape = rows, tokens, self.span._config.hidden_size
        return torch.randn(shape, generator=self.generator).to(self.span.device)

    def go_on(self, sessions):
        """Decode one token of every session, whichever way, and check it against each alone."""
        parts = [Part(self.hidden(cache.buffers[0][0].shape[0]), cache) for cache, _ in sessions]
        outputs = self.span.forward_many(parts)
        for output, part, (cache, own) in zip(outputs, parts, sessions, strict=True):
            alone = self.span.forward(part.hidden, own)
            assert cache.length == own.length
            assert output.shape == alone.shape
            assert ((output - alone).abs().max() / alone.abs().max()).item() < TOLERANCE

    def step(self, sessions):
        """The same, in static shapes."""
        assert self.span.static_decode.can_decode([Part(self.hidden(len(c.buffers[0][0])), c) for c, _ in sessions])
        bound = self.span.static_decode._max_gathered_bytes
        self.go_on(sessions)
        assert self.span.static_decode is not None, "it has not been given up"
        assert self.span.static_decode._max_gathered_bytes == bound, "memory was not short"


@given(st.integers(1, MAX_ROWS))
def test_rows_are_rounded_up_to_the_next_power_of_two(rows):
    assert row_bucket(rows) in (1, 2, 4, 8, 16, 32, 64, 128)
    assert rows <= row_bucket(rows) < 2 * rows


@given(st.integers(1, 10**6))
def test_lengths_are_rounded_up_by_a_quarter_at_most(length):
    bucket = length_bucket(length)
    assert length <= bucket <= max(SHORTEST, length * 1.25)
    assert bucket % 8 == 0, "what fused kernels ask of a mask"
    assert length_bucket(bucket) == bucket


def test_there_are_four_lengths_between_powers_of_two():
    buckets = {length_bucket(length) for length in range(1, 2049)}
    assert sorted(buckets) == [256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048]


@torch.inference_mode()
@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("family", CHECKED)
def test_sessions_of_any_length_and_number_of_rows_get_what_each_gets_alone(family, is_captured, tmp_path):
    span = span_of(family, tmp_path)
    assert span.static_decode is not None
    if is_captured:
        span.static_decode.calls = captured_calls()
    room = Room(span, 400)
    # Below, at and beyond sliding windows; nothing yet; and more rows than one.
    sessions = [room.session(*each) for each in ((1, 3), (3, WINDOW - 1), (2, 2 * WINDOW), (1, 0), (1, WINDOW))]
    room.step(sessions[:1])
    room.step(sessions)
    room.step(sessions[::-1])
    for cache in sessions[2]:
        cache.crop_to(4)
    room.step(sessions[2:4])
    room.step(sessions)


@torch.no_grad()  # In inference mode some of what asks goes by names that are harmless otherwise.
@pytest.mark.parametrize("family", CHECKED)
def test_what_is_captured_asks_the_device_for_no_value(family, tmp_path):
    span = span_of(family, tmp_path)
    room = Room(span, 100)
    room.step([room.session(1, 5), room.session(1, 2)])
    with Asked() as asked:
        span.static_decode._run(2, SHORTEST)
    assert not asked.names
    with Asked() as asked:
        span.static_decode._places.max().item()
    assert asked.names == {"_local_scalar_dense"}


@torch.inference_mode()
def test_histories_on_both_sides_of_a_bucket_are_decoded_together(tmp_path):
    span = span_of("llama", tmp_path, {**FAMILIES["llama"], "max_position_embeddings": 1024})
    room = Room(span, 1100)
    sessions = [room.session(1, SHORTEST - 2, 400), room.session(1, 5, 100), room.session(1, 330, 400)]
    for _ in range(3):
        room.step(sessions)
        room.step(sessions[:2])


@torch.inference_mode()
def test_rows_that_were_chosen_anew_are_found(llama):
    room = Room(llama, 200)
    (cache, own), other = room.session(2, 6), room.session(1, 4)
    room.step([(cache, own), other])
    into = llama.new_cache(CAPACITY, 3).buffers
    cache.select_rows(torch.tensor([1, 0, 1]), room.arena.place(room.start, 3, CAPACITY))
    own.select_rows(torch.tensor([1, 0, 1]), into)
    room.step([(cache, own), other])


@torch.inference_mode()
def test_parts_of_a_span_decode_with_their_own_layers_and_share_what_is_captured(llama):
    llama.static_decode.calls = captured_calls()
    rooms = [Room(llama.view(*blocks), 100) for blocks in ((0, 4), (1, 3), (1, 2), (2, 4))]
    sessions = [[room.session(1, 5), room.session(2, 2)] for room in rooms]
    for _ in range(2):
        for room, its in zip(rooms, sessions, strict=True):
            assert room.span.static_decode.calls is llama.static_decode.calls
            room.step(its)
    assert len(llama.static_decode.calls._calls) == len(rooms)


@torch.inference_mode()
def test_a_step_writes_one_position_of_each_row_and_nothing_else(llama):
    room = Room(llama, 120)
    sessions = [room.session(2, 6, 10), room.session(1, 3, 8)]
    before = [part.clone() for part in room.parts()]
    room.step(sessions)
    heads = llama.layers[0].heads
    written = {
        heads * start + head * capacity + length
        for start, capacity, length in ((3, 10, 6), (13, 10, 6), (26, 8, 3))
        for head in range(heads)
    }
    spare = set(range(heads * 121, heads * 122))
    for part, old in zip(room.parts(), before, strict=True):
        changed = ((part != old) & ~(part.isnan() & old.isnan())).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) - spare == written
        assert not part[heads * 120 : heads * 121].any(), "what is read beyond a history is zero"


@torch.inference_mode()
def test_what_does_not_fit_into_a_static_shape_goes_another_way(llama):
    room = Room(llama, 400)
    one, other = room.session(1, 3)[0], room.session(1, 3)[0]
    elsewhere = Room(llama, 100, seed=1).session(1, 3)[0]
    decode = llama.static_decode

    def part(cache, tokens=1, padding=None):
        return Part(room.hidden(cache.buffers[0][0].shape[0], tokens), cache, padding)

    assert decode.can_decode([part(one), part(other)])
    assert decode.can_decode([part(elsewhere)])
    assert not decode.can_decode([part(one), part(elsewhere)]), "two arenas"
    assert not decode.can_decode([part(one), part(other, tokens=2)])
    assert not decode.can_decode([part(one), part(other, padding=torch.tensor([1]))])
    many = room.session(MAX_ROWS, 0, 2)[0]
    assert decode.can_decode([part(many)])
    assert not decode.can_decode([part(many), part(one)]), "too many rows"


@torch.inference_mode()
def test_a_gathered_history_has_a_bound(llama):
    room = Room(llama, 100)
    sessions = [room.session(1, 3), room.session(1, 3)]
    parts = [Part(room.hidden(1), cache) for cache, _ in sessions]
    bytes_per_position = llama.cache_bytes_per_position // NUM_BLOCKS
    llama.static_decode._max_gathered_bytes = SHORTEST * bytes_per_position
    assert llama.static_decode.can_decode(parts[:1])
    assert not llama.static_decode.can_decode(parts)


@torch.inference_mode()
def test_a_session_that_is_full_is_refused_and_writes_into_nobody_elses_slot(llama):
    room = Room(llama, 100)
    full, neighbour = room.session(1, 5, capacity=5), room.session(1, 3, gap=0)
    before = [part.clone() for part in room.parts()]
    parts = [Part(room.hidden(1), full[0]), Part(room.hidden(1), neighbour[0])]
    assert not llama.static_decode.can_decode(parts)
    with pytest.raises(RuntimeError):
        llama.forward_many(parts[:1])
    assert all(torch.equal(part.nan_to_num(), old.nan_to_num()) for part, old in zip(room.parts(), before, strict=True))
    assert (full[0].length, neighbour[0].length) == (5, 3)


@torch.inference_mode()
def test_where_nothing_can_be_captured_sessions_go_on_the_other_way(llama, caplog):
    def refuse(_):
        raise RuntimeError("operation not permitted when stream is capturing")

    llama.static_decode.calls = CapturedCalls(refuse)
    room = Room(llama, 100)
    sessions = [room.session(1, 3), room.session(1, 6)]
    room.go_on(sessions)
    room.go_on(sessions)
    assert llama.static_decode is None
    assert caplog.text.count("it is given up") == 1


@torch.inference_mode()
def test_a_step_that_memory_is_short_for_takes_the_other_way_and_smaller_ones_do_not(llama):
    asked = []

    def refuse_two_rows(work):
        output = work().clone()
        asked.append(len(output))
        if len(output) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return Captured(lambda: output.copy_(work()), output)

    llama.static_decode.calls = CapturedCalls(refuse_two_rows)
    room = Room(llama, 100)
    sessions = [room.session(1, 3), room.session(1, 6)]
    for company in (sessions, sessions, sessions[:1], sessions):
        room.go_on(company)
    assert asked == [2, 1], "a step of two rows is tried once"


@torch.inference_mode()
def test_another_arena_takes_the_place_of_the_first(llama):
    captures = []

    def capture(work):
        captures.append(work)
        output = work().clone()
        return Captured(lambda: output.copy_(work()), output)

    llama.static_decode.calls = CapturedCalls(capture)
    for seed in (1, 2):
        room = Room(llama, 100, seed)
        sessions = [room.session(1, 3), room.session(2, 6)]
        room.step(sessions)
        room.step(sessions)
        assert len(captures) == seed, "a captured step reads and writes the arena that it was captured in"


def test_a_server_on_a_cpu_decodes_the_way_that_is_faster_there(tmp_path):
    build("llama", FAMILIES["llama"]).save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(str(tmp_path))
    tensors = checkpoint.load_span(0, NUM_BLOCKS, dtype=torch.float32)
    span = build_span(checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=torch.float32, device=CPU)
    assert span.static_decode is None
    assert span.view(1, 2).static_decode is None


@pytest.mark.parametrize("family", ["bloom", "gptj", "qwen3_next"])
def test_a_family_that_attends_in_a_way_of_its_own_or_keeps_a_state_is_found_out(family, tmp_path):
    span = span_of(family, tmp_path)
    assert span.static_decode is None
    assert not span.can_batch


def test_a_wrong_result_is_found_out(llama, monkeypatch):
    whole = StaticDecode.forward
    monkeypatch.setattr(StaticDecode, "forward", lambda self, parts: [part + 0.1 for part in whole(self, parts)])
    llama.find_static_decode(llama._config)
    assert llama.static_decode is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
@pytest.mark.parametrize("family", CHECKED)
def test_graphs_on_a_gpu_give_what_each_session_gets_alone(family, tmp_path):
    span = span_of(family, tmp_path, device=torch.device("cuda"))
    if span.static_decode is None:
        pytest.skip("the layers of this family cannot be captured")
    room = Room(span, 400)
    sessions = [room.session(*each) for each in ((1, 3), (3, WINDOW - 1), (2, 2 * WINDOW), (1, 0), (1, WINDOW))]
    for company in (sessions[:1], sessions, sessions[::-1], sessions[2:4], sessions):
        room.step(company)
    assert span.static_decode.calls._calls, "steps have been captured"
