"""A span gives what its layers give inside the whole model, and shares weights with the views into it."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from node.errors import ConfigMismatch, UnsupportedFamily
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.trunk import find_trunk, slice_config
from tests.families import FAMILIES, NUM_BLOCKS, build

CPU = torch.device("cpu")
TOKENS = 14


@pytest.fixture(scope="module", params=["gemma2", "gpt2", "qwen2_moe"])
def models(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build(request.param, FAMILIES[request.param]).save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), Checkpoint.open(str(directory))


def span_of(checkpoint, start, end, tensors=None):
    tensors = checkpoint.load_span(start, end, dtype=torch.float32) if tensors is None else tensors
    return build_span(checkpoint.config, tensors, start, end, dtype=torch.float32, device=CPU)


@torch.no_grad()
def around_blocks(model, start, end):
    """Return what enters block ``start`` and what leaves block ``end - 1`` in the whole model."""
    layers, seen = find_trunk(model, NUM_BLOCKS).layers, {}

    def before(_, args, kwargs):
        seen["in"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def after(_, args, output):
        seen["out"] = (output[0] if isinstance(output, tuple) else output).clone()

    hooks = [
        layers[start].register_forward_pre_hook(before, with_kwargs=True),
        layers[end - 1].register_forward_hook(after),
    ]
    model(torch.randint(3, 128, (2, TOKENS), generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return seen["in"], seen["out"]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 3), (0, 4), (3, 4)])
def test_a_span_gives_what_its_blocks_give_inside_the_whole_model(models, start, end):
    model, checkpoint = models
    entering, leaving = around_blocks(model, start, end)
    span = span_of(checkpoint, start, end)
    torch.testing.assert_close(span.forward(entering, span.new_cache(TOKENS, 2)), leaving, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pieces", [(TOKENS,), (1,) * TOKENS, (5, 1, 8)])
def test_a_history_in_pieces_gives_what_it_gives_at_once(models, pieces):
    model, checkpoint = models
    entering, leaving = around_blocks(model, 1, 3)
    span = span_of(checkpoint, 1, 3)
    cache = span.new_cache(TOKENS, 2)
    outputs = [span.forward(piece, cache) for piece in entering.split(pieces, dim=1)]
    assert cache.length == TOKENS
    torch.testing.assert_close(torch.cat(outputs, dim=1), leaving, atol=2e-5, rtol=1e-5)


def test_a_view_gives_the_same_as_a_span_of_its_own_and_holds_no_weights_of_its_own(models):
    model, checkpoint = models
    entering, leaving = around_blocks(model, 1, 3)
    whole = span_of(checkpoint, 0, 4)
    view = whole.view(1, 3)
    torch.testing.assert_close(view.forward(entering, view.new_cache(TOKENS, 2)), leaving, atol=2e-5, rtol=1e-5)
    assert all(mine is its for mine, its in zip(view._trunk.layers, whole._trunk.layers[1:3], strict=True))
    assert whole.view(1, 3) is view
    assert whole.view(0, 4) is whole
    entering, leaving = around_blocks(model, 0, 4)
    torch.testing.assert_close(whole.forward(entering, whole.new_cache(TOKENS, 2)), leaving, atol=2e-5, rtol=1e-5)


def test_sessions_of_one_span_do_not_see_each_other(models):
    model, checkpoint = models
    entering, leaving = around_blocks(model, 0, 2)
    span = span_of(checkpoint, 0, 2)
    one, other = span.new_cache(TOKENS, 2), span.new_cache(TOKENS, 2)
    outputs = []
    for token in entering.split(1, dim=1):
        outputs.append(span.forward(token, one))
        span.forward(token.flip(0) + 1, other)
    torch.testing.assert_close(torch.cat(outputs, dim=1), leaving, atol=2e-5, rtol=1e-5)


def test_a_step_that_fails_leaves_the_session_as_it_was(models):
    model, checkpoint = models
    entering, leaving = around_blocks(model, 0, 4)
    span = span_of(checkpoint, 0, 4)
    cache = span.new_cache(TOKENS, 2)
    first = span.forward(entering[:, :6], cache)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = span._trunk.layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        span.forward(entering[:, 6:] * 3, cache)
    hook.remove()
    assert cache.length == 6
    second = span.forward(entering[:, 6:], cache)
    torch.testing.assert_close(torch.cat([first, second], dim=1), leaving, atol=2e-5, rtol=1e-5)


def test_around_its_blocks_a_span_holds_no_weight(models):
    _, checkpoint = models
    span = span_of(checkpoint, 1, 3)
    inside = {id(parameter) for parameter in span._trunk.layers.parameters()}
    assert inside
    assert {id(parameter) for parameter in span._model.parameters()} == inside
    assert len(span._trunk.layers) == 2


def test_weights_that_lack_a_tensor_or_have_another_shape_are_refused_by_its_name(models):
    _, checkpoint = models
    tensors = checkpoint.load_span(0, 2, dtype=torch.float32)
    name = next(name for name in sorted(tensors) if "norm" in name.lower() or "ln_" in name)
    lacking = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(ConfigMismatch, match=f"lacks .*{name.split('.', 2)[-1]}"):
        span_of(checkpoint, 0, 2, lacking)
    with pytest.raises(ConfigMismatch, match="unheard_of"):
        span_of(checkpoint, 0, 2, {**tensors, "unheard_of": torch.zeros(1)})


def test_a_family_that_changes_what_enters_its_layers_is_refused_when_built(tmp_path):
    values = {"vocab_size": 128, "d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 64}
    build("xglm", {**values, "max_position_embeddings": 128}).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedFamily, match="xglm changes hidden states outside its layers"):
        span_of(Checkpoint.open(str(tmp_path)), 0, 2)


def test_a_sliced_config_leaves_the_whole_models_config_alone():
    config = CONFIG_MAPPING["gemma2"](**FAMILIES["gemma2"])
    before = copy.deepcopy(config.to_dict())
    sliced = slice_config(config, 1, 3)
    assert (sliced.num_hidden_layers, sliced.layer_types) == (2, config.layer_types[1:3])
    assert config.to_dict() == before


def test_a_model_without_one_list_of_its_layers_is_refused():
    model = torch.nn.Module()
    model.left = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(4))
    assert find_trunk(model, 4).path == "left"
    model.right = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(4))
    for num_blocks in (3, 4):
        with pytest.raises(UnsupportedFamily, match="one list"):
            find_trunk(model, num_blocks)


def test_a_span_that_is_given_up_leaves_nothing_behind(models):
    checkpoint = models[1]
    gc.collect()
    known = set(ALL_ATTENTION_FUNCTIONS)
    span = span_of(checkpoint, 0, 2)
    span.forward(torch.zeros(1, 3, checkpoint.config.hidden_size), span.new_cache(8, 1), None)
    model = weakref.ref(span._model)
    assert set(ALL_ATTENTION_FUNCTIONS) > known
    del span
    gc.collect()
    assert model() is None
    assert set(ALL_ATTENTION_FUNCTIONS) == known


def test_whoever_looks_between_modules_changes_nothing_and_can_end_a_forward_pass(models):
    _, checkpoint = models
    span, seen = span_of(checkpoint, 0, 2), []
    entering = torch.randn(1, TOKENS, checkpoint.config.hidden_size, generator=torch.Generator().manual_seed(1))
    plain = span.forward(entering, span.new_cache(TOKENS, 1))
    with span.looking(lambda: seen.append(1)):
        assert torch.equal(span.forward(entering, span.new_cache(TOKENS, 1)), plain)
    assert len(seen) >= 2 * 3, "several times in each block"
    with pytest.raises(InterruptedError), span.looking(interrupt):
        span.forward(entering, span.new_cache(TOKENS, 1))
    assert torch.equal(span.forward(entering, span.new_cache(TOKENS, 1)), plain)


def interrupt():
    raise InterruptedError
