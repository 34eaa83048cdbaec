"""Chunks are cut where the protocol says, whatever the codec, and hash what a naive reader of the payloads would."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.commitment.chunks import NOTHING, Chunk, Leaf, Tap
from node.wire import LOGITS, Step, payload_bytes
from tests.node.commitment.sessions import noise

SESSION = b"s" * 16
WIDTHS = {"float32": 2, "bfloat16": 3, "int8": 66, "ids": 1, "logits": 3}


def step_of(position, rows, tokens, codec="float32", **fields):
    width = WIDTHS[codec]
    payload = noise(payload_bytes(codec, (rows, tokens, width)), position, rows, tokens)
    return Step(SESSION, position, (rows, tokens, width), codec, payload, **fields)


def add(tap, step, segment=0):
    return tap.add(step, segment, step.codec, step.shape, step.payload)


def places(chunks):
    return [(chunk.index, chunk.first) for chunk in chunks]


def naive_bytes(step, first, last):
    """The bytes of positions ``[first, last)``, part by part and row by row."""
    rows, tokens, width = step.shape
    sizes = {"int8": (4, 66), "ids": (4,), LOGITS: (4 * width, 4 * width), "float32": (8,), "bfloat16": (6,)}[
        step.codec
    ]
    data, found = np.frombuffer(step.payload, np.uint8), b""
    for size in sizes:
        part, data = np.split(data, [rows * tokens * size])
        found += part.reshape(rows, tokens, size)[:, first - step.position : last - step.position].tobytes()
    assert not data.size
    return found


def test_the_drawing_of_the_module_is_what_happens():
    tap = Tap("float32")
    assert places(add(tap, step_of(0, 1, 130))) == [(0, 0), (1, 64)]
    for position in range(130, 140):
        assert add(tap, step_of(position, 1, 1)) == []
    assert places(add(tap, step_of(70, 1, 1, crop=70))) == [(2, 128)]
    closed = [chunk for position in range(71, 141) for chunk in add(tap, step_of(position, 1, 1))]
    assert places([*closed, *tap.seal()]) == [(3, 70), (4, 128)]
    assert tap.seal() == []


def test_a_chunk_ends_with_its_64th_position_though_its_window_is_gone_through_again_and_again():
    tap, closed = Tap("float32"), []
    for _ in range(130):
        closed += add(tap, step_of(3, 1, 1, crop=3))
    assert places(closed) == [(0, 3), (1, 3)]


def test_a_segment_ends_what_is_open_and_counts_anew_and_one_that_has_passed_changes_nothing():
    tap = Tap("float32")
    add(tap, step_of(0, 1, 10))
    (cut,) = add(tap, step_of(10, 1, 1), segment=3)
    assert (cut.segment, cut.index, cut.first) == (0, 0, 0)
    assert add(tap, step_of(11, 1, 1), segment=1) == []
    (rest,) = tap.seal()
    assert (rest.segment, rest.index, rest.first) == (3, 0, 10)


@given(
    st.sampled_from(sorted(WIDTHS)), st.integers(1, 3), st.lists(st.integers(1, 150), min_size=1, max_size=5),
    st.integers(0, 100),
)  # fmt: skip
def test_chunks_hash_the_bytes_of_their_positions_in_every_codec(codec, rows, lengths, first):
    tap, closed, expected, position = Tap("float32"), [], {}, first
    for tokens in lengths:
        step = step_of(position, rows, tokens, codec)
        closed += add(tap, step)
        for window in range(position // 64, (position + tokens - 1) // 64 + 1):
            low, high = max(position, 64 * window), min(position + tokens, 64 * window + 64)
            expected[window] = expected.get(window, b"") + naive_bytes(step, low, high)
        position += tokens
    closed += tap.seal()
    assert {chunk.first // 64: chunk.digest for chunk in closed} == {
        window: sha256(data).digest() for window, data in expected.items()
    }
    assert [chunk.index for chunk in closed] == list(range(len(expected)))


class SlowTap(Tap):
    """One that takes no step in the short way."""

    def put(self, step, segment, payload):
        return False


CHANGES = st.sampled_from([{}, {}, {}, {"crop": 3}, {"rows": (0, 0)}, {"replay": 1}, {"logits_to_keep": 1}])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 90) | st.just(1), CHANGES, st.integers(0, 9))))
def test_a_tap_takes_steps_in_the_short_way_as_it_does_in_the_long_one(steps):
    short, long, chunks = Tap("float32"), SlowTap("float32"), ([], [])
    position = segment = 0
    for jump, tokens, changes, begins in steps:
        position = jump if jump > 190 else position  # Mostly one behind the other.
        segment += begins == 9
        step = replace(step_of(position, 2, tokens), **changes)
        for tap, closed in zip((short, long), chunks, strict=True):
            closed += add(tap, step, segment)
        position += tokens
    assert chunks[0] + short.seal() == chunks[1] + long.seal()


def test_a_tap_takes_most_steps_of_one_token_in_the_short_way():
    tap, long_ways = Tap("float32"), []
    for position in range(128):
        step = step_of(position, 1, 1)
        if not tap.put(step, 0, step.payload):
            long_ways.append(position)
            add(tap, step)
    assert long_ways == [0, 63, 64, 127]


def test_of_a_head_that_answers_for_the_last_positions_those_are_hashed():
    tap, step = Tap("float32"), step_of(50, 2, 30, logits_to_keep=20)
    answers = replace(step_of(60, 2, 20, LOGITS))
    (first,) = tap.add(step, 0, LOGITS, answers.shape, answers.payload)
    (second,) = tap.seal()
    assert first.digest == sha256(naive_bytes(answers, 60, 64)).digest()
    assert second.digest == sha256(naive_bytes(answers, 64, 80)).digest()


def test_a_chunk_without_answers_hashes_nothing():
    tap, step = Tap("float32"), step_of(0, 1, 100)
    answer = step_of(99, 1, 1, LOGITS)
    (first,) = tap.add(step, 0, LOGITS, answer.shape, answer.payload)
    assert first.digest == NOTHING


@pytest.mark.parametrize(
    "changes", [{"crop": 5}, {"rows": (0,)}, {"rows": (1,)}, {"logits_to_keep": 2}, {"replay": 1}, {"position": 6}]
)
def test_headers_differ_in_everything_that_changes_what_a_stage_does(changes):
    step = step_of(5, 1, 3)
    headers = set()
    for each in (step, replace(step, **changes)):
        tap = Tap("float32")
        add(tap, each)
        headers.add(tap.seal()[0].header)
    assert len(headers) == 2


def test_headers_differ_in_codec_and_in_the_way_that_positions_are_cut_into_steps():
    headers = set()
    for codec, lengths in (("float32", [4]), ("bfloat16", [4]), ("float32", [2, 2]), ("float32", [1, 3])):
        tap, position = Tap(codec), 0
        for tokens in lengths:
            add(tap, step_of(position, 1, tokens))
            position += tokens
        headers.add(tap.seal()[0].header)
    assert len(headers) == 4


def test_a_copy_goes_on_by_itself():
    tap = Tap("float32")
    add(tap, step_of(0, 1, 3))
    copied = tap.copy()
    add(copied, step_of(3, 1, 2))
    assert copied.seal() != tap.seal()


def test_a_leaf_and_a_voucher_hold_every_field():
    leaf = Leaf(1, 2, 3, b"h" * 32, b"i" * 32, b"o" * 32)
    assert leaf.chunk_in == Chunk(1, 2, 3, b"h" * 32, b"i" * 32)
    changes = [{name: 9} for name in ("segment", "index", "first")]
    changes += [{name: b"x" * 32} for name in ("header", "taken", "given")]
    hashes = {replace(leaf, **each).hash(SESSION) for each in [{}, *changes]} | {leaf.hash(b"t" * 16)}
    assert len(hashes) == 8
    bodies = {replace(leaf, **each).chunk_out.voucher_body(SESSION) for each in changes}
    assert len(bodies) == 6  # The one with another ``taken`` is as it was: that does not go out.
