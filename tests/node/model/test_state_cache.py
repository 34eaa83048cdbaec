"""A session over layers with a state holds what transformers' own cache holds for them, and goes forward only."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from node.errors import ComputeFailed, SessionError, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.state_cache import StateCache, StateSize
from node.model.trunk import find_trunk
from tests.families import NUM_BLOCKS, STATEFUL, WINDOW, build

CPU = torch.device("cpu")
START, END = 1, 3
"""Blocks of the span: one with a state, one with attention."""
TOKENS = 9
HIDDEN = 32


@pytest.fixture(scope="module", params=["lfm2", "qwen3_next", "falcon_h1", "jamba"])
def checkpoint(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build(request.param, STATEFUL[request.param]).save_pretrained(directory)
    return Checkpoint.open(str(directory))


@pytest.fixture
def span(checkpoint):
    return span_of(checkpoint, START, END)


def span_of(checkpoint, start, end):
    tensors = checkpoint.load_span(start, end, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, start, end, dtype=torch.float32, device=CPU)


def hidden_of(rows, tokens, seed=0):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def num_bytes_of(layer):
    """Add up every tensor that a cache layer has, whatever it is called."""
    parts = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    for value in vars(layer).values():
        if isinstance(value, dict):
            parts += [part for part in value.values() if isinstance(part, torch.Tensor)]
    return sum(part.nbytes for part in parts)


@torch.no_grad()
def test_it_holds_what_transformers_holds_for_the_same_layers_and_nothing_for_others(checkpoint, span):
    rows = 2
    cache = span.new_cache(TOKENS, rows)
    span.forward(hidden_of(rows, TOKENS), cache)
    whole = AutoModelForCausalLM.from_pretrained(checkpoint.tokenizer_dir, dtype=torch.float32)
    theirs = DynamicCache(config=whole.config)
    whole(torch.randint(3, 99, (rows, TOKENS)), past_key_values=theirs, use_cache=True)
    expected = sum(num_bytes_of(layer) for layer in theirs.layers[START:END])
    assert cache.num_bytes == expected > 0
    assert isinstance(span.state, StateSize)
    assert rows * (span.state.row_bytes + TOKENS * span.state.position_bytes) == expected


def test_what_a_session_is_charged_is_never_less_than_what_it_holds(checkpoint):
    for start, end in ((0, 1), (1, 2), (0, NUM_BLOCKS)):
        span = span_of(checkpoint, start, end)
        for rows, tokens in ((1, 1), (3, 2), (1, 40)):
            cache = span.new_cache(tokens, rows)
            span.forward(hidden_of(rows, tokens), cache)
            charged = rows * (tokens + span.state_positions) * span.cache_bytes_per_position
            assert charged >= cache.num_bytes > 0


def test_its_length_is_known_before_a_layer_counts_and_where_none_does(checkpoint):
    span = span_of(checkpoint, 0, 1)
    cache = span.new_cache(TOKENS)
    assert cache.length == cache.get_seq_length() == 0
    span.forward(hidden_of(1, 4), cache)
    span.forward(hidden_of(1, 1), cache)
    assert cache.length == cache.get_seq_length() == 5
    assert cache.get_mask_sizes(3, 0) == (8, 0)


def test_it_is_not_taken_back_and_a_crop_that_forgets_nothing_does_nothing(span):
    cache = span.new_cache(TOKENS)
    span.forward(hidden_of(1, 5), cache)
    cache.crop_to(5)
    cache.crop_to(8)
    with pytest.raises(SessionError, match="cannot be taken back from position 5 to 4; open a new session"):
        cache.crop_to(4)
    assert cache.length == 5


def test_rows_are_chosen_and_repeated_with_their_whole_history(span):
    past, following = hidden_of(3, 6), hidden_of(3, 2, seed=1)
    rows = torch.tensor([2, 0, 0, 1])
    cache = span.new_cache(TOKENS, 3)
    span.forward(past, cache)
    cache.select_rows(rows)
    alone = span.new_cache(TOKENS, 4)
    span.forward(past[rows], alone)
    expected = span.forward(following[rows], alone)
    torch.testing.assert_close(span.forward(following[rows], cache), expected, atol=1e-6, rtol=1e-5)


def test_after_a_step_that_failed_half_way_no_other_is_computed(span):
    cache = span.new_cache(TOKENS)
    span.forward(hidden_of(1, 3), cache)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = find_trunk(span._model, END - START).layers[-1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        span.forward(hidden_of(1, 2), cache)
    hook.remove()
    assert cache.length == 3
    with pytest.raises(ComputeFailed, match="failed half way; open a new session"):
        span.forward(hidden_of(1, 2), cache)


def test_keys_beyond_a_window_are_kept_because_the_mask_applies_it(tmp_path):
    build("lfm3", STATEFUL["lfm3"]).save_pretrained(tmp_path)
    span = span_of(Checkpoint.open(str(tmp_path)), 3, 4)
    cache = span.new_cache(4 * WINDOW)
    span.forward(hidden_of(1, 2 * WINDOW), cache)
    span.forward(hidden_of(1, 1), cache)
    assert cache.layers[3].keys.shape[2] == 2 * WINDOW + 1
    assert not any(cache.is_sliding)


def test_a_window_inside_a_layer_with_a_state_is_refused():
    config = CONFIG_MAPPING["zaya"](num_hidden_layers=2, layer_types=["hybrid", "hybrid_sliding"], sliding_window=8)
    with pytest.raises(UnsupportedFamily, match="state and a sliding window"):
        StateCache(config)
