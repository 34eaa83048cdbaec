"""Slots of an arena are memory of their own, in the shape that layers write."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.model.arena import KeyValueArena, LayerShape

LAYERS = (LayerShape(2, 4, 3), LayerShape(1, 8, 8))


def arena_of(num_positions):
    return KeyValueArena(LAYERS, num_positions, dtype=torch.float32, device=torch.device("cpu"))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(0, 5)), min_size=1, max_size=8))
def test_slots_side_by_side_keep_what_is_written_into_them(slots):
    total = sum(rows * capacity + gap for rows, capacity, gap in slots)
    arena, start, placed = arena_of(total), 0, []
    for number, (rows, capacity, gap) in enumerate(slots):
        buffers = arena.place(start, rows, capacity)
        for layer, (keys, values) in zip(LAYERS, buffers, strict=True):
            assert keys.shape == (rows, layer.heads, capacity, layer.key_dim)
            assert values.shape == (rows, layer.heads, capacity, layer.value_dim)
            keys.fill_(number)
            values.fill_(-number)
        placed.append((start, rows, capacity))
        start += rows * capacity + gap
    for number, place in enumerate(placed):
        for keys, values in arena.place(*place):
            assert (keys == number).all()
            assert (values == -number).all()


def test_a_slot_is_memory_of_the_arena_and_not_a_copy():
    arena = arena_of(100)
    arena.place(20, 2, 10)[1][0].fill_(7.0)
    assert (arena.place(30, 1, 10)[1][0] == 7.0).all(), "the second row of the first slot"
    assert all(part.is_contiguous() for pair in arena.place(20, 2, 10) for part in pair)


@pytest.mark.parametrize(("start", "rows", "capacity"), [(0, 1, 101), (1, 10, 10), (100, 1, 1)])
def test_a_slot_beyond_the_arena_is_noticed(start, rows, capacity):
    with pytest.raises(AssertionError):
        arena_of(100).place(start, rows, capacity)


def test_a_position_takes_heads_times_keys_and_values():
    assert [layer.num_elements for layer in LAYERS] == [14, 16]
