"""A text in pieces gives what it gives at once, also where transformers would begin anew or take padding for text."""

import pytest
import torch

from node.model.checkpoint import Checkpoint
from node.model.families import STATE_FAMILIES, forgets_in_long_steps
from node.model.span import build_span
from node.model.trunk import find_trunk
from tests.families import NUM_BLOCKS, STATEFUL, build

CPU = torch.device("cpu")
PIECES = [(1,) * 12, (5, 1, 6), (2, 3, 7), (11, 1)]
PADDING = (5, 0)


@pytest.fixture(scope="module", params=sorted(STATE_FAMILIES))
def span(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build(request.param, STATEFUL[request.param]).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(0, NUM_BLOCKS, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=torch.float32, device=CPU)


@pytest.fixture
def hidden():
    return torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))


def run(span, hidden, pieces, padding=None):
    cache = span.new_cache(hidden.shape[1], hidden.shape[0])
    outputs = [span.forward(piece, cache, padding) for piece in hidden.split(pieces, dim=1)]
    assert cache.length == hidden.shape[1]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_give_what_the_whole_text_gives(span, hidden, pieces):
    whole = run(span, hidden, (12,))
    torch.testing.assert_close(run(span, hidden, pieces), whole, atol=1e-4 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_of_padding_leave_no_trace_in_the_text_behind_it(span, hidden, pieces):
    padding = torch.tensor(PADDING)
    whole = run(span, hidden, (12,), padding)
    pieced = run(span, hidden, pieces, padding)
    for row, first in enumerate(PADDING):
        expected = whole[row, first:]
        torch.testing.assert_close(pieced[row, first:], expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def test_only_families_that_forget_in_long_steps_are_run_token_by_token(span, hidden):
    lengths = []
    layer = find_trunk(span._model, NUM_BLOCKS).layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    run(span, hidden, (8, 4))
    hook.remove()
    assert lengths == ([8, 1, 1, 1, 1] if forgets_in_long_steps(span._config) else [8, 4])
