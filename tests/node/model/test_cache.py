"""A SpanCache holds what transformers' DynamicCache holds, whatever happens to it."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from transformers import DynamicCache

from node.model.arena import KeyValueArena, LayerShape
from node.model.cache import SpanCache

FIRST_LAYER, NUM_LAYERS, HEADS, KEY_SIZE, VALUE_SIZE = 2, 3, 2, 4, 3
LAYERS = range(FIRST_LAYER, FIRST_LAYER + NUM_LAYERS)


def buffers_for(rows, max_length, num_layers=NUM_LAYERS):
    layers = [LayerShape(HEADS, KEY_SIZE, VALUE_SIZE)] * num_layers
    arena = KeyValueArena(layers, rows * max_length, dtype=torch.float32, device=torch.device("cpu"))
    return arena.place(0, rows, max_length)


def states_of(rows, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, HEADS, tokens, KEY_SIZE, generator=generator),
        torch.randn(rows, HEADS, tokens, VALUE_SIZE, generator=generator),
    )


def write(cache, rows, tokens, seed=0, layers=LAYERS):
    return [cache.update(*states_of(rows, tokens, seed + layer), layer) for layer in layers]


class CacheMachine(RuleBasedStateMachine):
    """Does the same to both caches; DynamicCache counts its layers from 0."""

    @initialize(rows=st.integers(1, 3))
    def start(self, rows):
        self.rows = rows
        self.cache = SpanCache(FIRST_LAYER, buffers_for(rows, 700))
        self.reference = DynamicCache()
        self.seed = 0
        self.seen = []

    @rule(tokens=st.integers(1, 40))
    def step(self, tokens):
        self.seed += 100
        before = self.cache.length
        self.seen = write(self.cache, self.rows, tokens, self.seed)
        assert self.cache.length == before
        self.cache.advance(tokens)
        for layer, seen in zip(LAYERS, self.seen, strict=True):
            expected = self.reference.update(*states_of(self.rows, tokens, self.seed + layer), layer - FIRST_LAYER)
            for part, expected_part in zip(seen, expected, strict=True):
                assert torch.equal(part, expected_part)

    @rule(tokens=st.integers(1, 40), num_layers=st.integers(0, NUM_LAYERS))
    def step_that_fails_half_way(self, tokens, num_layers):
        write(self.cache, self.rows, tokens, seed=-999, layers=LAYERS[:num_layers])

    @rule(data=st.data())
    def crop(self, data):
        length = data.draw(st.integers(0, self.cache.length))
        self.cache.crop_to(length)
        if self.reference.get_seq_length() > length:
            self.reference.crop(length - self.reference.get_seq_length())

    @rule(data=st.data())
    def select_rows(self, data):
        rows = torch.tensor(data.draw(st.lists(st.integers(0, self.rows - 1), min_size=1, max_size=4)))
        self.cache.select_rows(rows, None if len(rows) == self.rows else buffers_for(len(rows), 700))
        self.rows = len(rows)
        if self.reference.get_seq_length():
            self.reference.batch_select_indices(rows)
        else:
            self.reference = DynamicCache()

    @invariant()
    def has_the_length_of_the_reference(self):
        if hasattr(self, "cache"):
            assert self.cache.get_seq_length(1) == self.cache.length == self.reference.get_seq_length()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=50, stateful_step_count=15)


def test_a_decode_step_writes_in_place():
    cache = SpanCache(0, buffers_for(1, 64, 1))
    keys, _ = cache.update(*states_of(1, 10, 0), 0)
    cache.advance(10)
    grown, _ = cache.update(*states_of(1, 1, 1), 0)
    assert grown.data_ptr() == keys.data_ptr()
    assert grown.shape[2] == 11


@pytest.mark.parametrize("length", [0, 7, 12])
def test_masks_see_the_history_and_the_step_without_an_offset(length):
    cache = SpanCache(FIRST_LAYER, buffers_for(1, 64))
    write(cache, 1, 12)
    cache.advance(12)
    cache.crop_to(length)
    assert cache.get_mask_sizes(3, 0) == (length + 3, 0)
    assert cache.get_seq_length() == length
    assert cache.is_sliding == [False] * NUM_LAYERS == [False] * len(cache)


def test_cropping_to_more_than_there_is_changes_nothing():
    cache = SpanCache(FIRST_LAYER, buffers_for(1, 64))
    write(cache, 1, 12)
    cache.advance(12)
    cache.crop_to(50)
    assert cache.length == 12
