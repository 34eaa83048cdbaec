"""What is kept of a session's beginning, and how it is run a second time."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.client import shadow_trace
from node.client.recheck import compare
from node.client.shadow_trace import MAX_POSITIONS, ShadowTrace
from node.client.stage_link import SessionShape
from node.model.tensors import to_payload
from node.wire import Result, Step

SESSION, WIDTH = bytes(16), 4


def shape(rows=1, codec="float32"):
    return SessionShape(bytes(32), rows, (), 1024, codec, WIDTH)


def values(num_rows, tokens, first=0):
    """Hidden states in which every position says which it is."""
    numbers = torch.arange(first + 1, first + tokens + 1).float()
    return numbers.view(1, tokens, 1).expand(num_rows, tokens, WIDTH).contiguous()


def step(position, tokens, num_rows=1, codec="float32", **changes):
    payload = bytes(to_payload(values(num_rows, tokens, position), codec))
    return Step(SESSION, position, (num_rows, tokens, WIDTH), codec, payload, **changes)


def result(asked):
    """Return what is given for a step: in these tests what was sent."""
    return Result(SESSION, asked.position, asked.shape, asked.codec, asked.payload)


def trace_of(*steps, is_kept=True):
    counted = []
    trace = ShadowTrace(shape(steps[0].shape[0], steps[0].codec), counted.append, is_kept=is_kept)
    for each in steps:
        trace.answered(each, result(each))
    return trace, sum(counted)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 3), st.sampled_from(["float32", "int8"]),
    st.data(),
)  # fmt: skip
def test_the_beginning_is_replayed_in_the_same_steps_and_comes_out_the_same(lengths, rows, codec, data):
    starts = [0, *accumulate(lengths)]
    steps = [step(first, tokens, rows, codec) for first, tokens in zip(starts, lengths, strict=False)]
    trace, counted = trace_of(*steps)
    assert counted == rows * sum(lengths)
    assert trace.length == min(sum(lengths), MAX_POSITIONS)
    length = data.draw(st.integers(1, trace.length))
    made = trace.prefix(length, "newcomer")
    cuts = [each.position for each in made.steps]
    assert cuts == [*[first for first in starts[:-1] if first < length - 1], length - 1], "the last one by itself"
    assert [each.position + each.shape[1] for each in made.steps] == [*cuts[1:], length], "without a gap"
    compared = compare(made, [result(each) for each in made.steps])
    assert (compared.num_positions, compared.num_different) == (length, 0)


def test_something_else_that_comes_out_is_seen_at_its_place():
    trace, _ = trace_of(step(0, 20), step(20, 1), step(21, 1))
    made = trace.prefix(22, "newcomer")
    again = [result(each) for each in made.steps]
    again[1] = Result(SESSION, 20, (1, 1, WIDTH), "float32", bytes(to_payload(-values(1, 1, 20), "float32")))
    compared = compare(made, again)
    assert (compared.num_different, compared.first_different) == (1, 20)


@pytest.mark.parametrize("change", [{"crop": 15}, {"rows": (0,)}])
def test_what_lies_before_a_crop_or_a_selection_of_rows_stands_and_nothing_more_is_kept(change):
    trace, counted = trace_of(step(0, 20), step(20, 1), step(15, 3, **change), step(18, 1))
    assert (trace.length, trace.is_complete) == (21, True)
    assert counted == 25, "all of it is consumed"


def test_what_is_kept_is_bounded_in_positions_and_in_bytes(monkeypatch):
    long, counted = trace_of(step(0, 3000))
    assert (long.length, long.is_complete, counted) == (MAX_POSITIONS, True, 3000)
    monkeypatch.setattr(shadow_trace, "MAX_BYTES", 10 * 4 * WIDTH)
    assert trace_of(step(0, 3000))[0].length == 10


def test_a_session_of_which_nothing_is_kept_is_counted():
    trace, counted = trace_of(step(0, 20), step(20, 1), is_kept=False)
    assert (trace.length, counted) == (0, 21)
