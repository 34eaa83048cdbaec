"""A quantised span gives what transformers' quantised model gives, weighs what was planned, and says what it lacks."""

import weakref

import pytest
import torch
from torch import nn
from torchao.prototype.quantization.int4 import Int4OpaqueTensor, PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from node.errors import QuantizerMissing, UnsupportedFamily, UserError
from node.model import quantise
from node.model.checkpoint import Checkpoint
from node.model.quantise import SCHEMES, check_stored, find_scheme, stored_method, weight_bytes
from node.model.span import build_quantised_span, build_span
from node.model.trunk import find_trunk
from node.run.exit_codes import exit_code
from tests.families import FAMILIES, NUM_BLOCKS, build

CPU = torch.device("cpu")
TOKENS = 14
WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Wide enough for the 64 inputs that share a scale in 4 bits."""
TENSORS = {"int8": Int8Tensor, "int4": Int4OpaqueTensor}


def checkpoint_of(family, directory):
    build(family, {**FAMILIES[family], **WIDE}).save_pretrained(directory)
    return Checkpoint.open(str(directory))


def whole_quantised(directory, name):
    """Let transformers quantise the whole model, with a config that is not ours."""
    how = Int8WeightOnlyConfig() if name == "int8" else PrototypeInt4WeightOnlyConfig(group_size=64)
    dtype = SCHEMES[name].dtype or torch.float32
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, quantization_config=TorchAoConfig(how))


def span_of(checkpoint, name, start, end):
    scheme = SCHEMES[name]
    dtype = scheme.dtype or torch.float32

    def load_block(block):
        return checkpoint.load_span(block, block + 1, dtype=dtype)

    return build_quantised_span(checkpoint.config, load_block, start, end, scheme=scheme, dtype=dtype, device=CPU)


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


@pytest.mark.parametrize(("start", "end"), [(0, 4), (1, 3), (3, 4)])
@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", "int8"), ("llama", "int4"), ("gpt_neox", "int8"), ("gpt_neox", "int4"), ("qwen2_moe", "int8")],
)
def test_a_quantised_span_gives_what_transformers_quantised_model_gives(tmp_path, family, name, start, end):
    checkpoint = checkpoint_of(family, tmp_path)
    entering, leaving = around_blocks(whole_quantised(tmp_path, name), start, end)
    span = span_of(checkpoint, name, start, end)
    output = span.forward(entering, span.new_cache(TOKENS, rows=2))
    torch.testing.assert_close(output, leaving, atol=2e-5, rtol=1e-5)

    tensors = checkpoint.load_span(start, end, dtype=span.dtype)
    plain = build_span(checkpoint.config, tensors, start, end, dtype=span.dtype, device=CPU)
    assert not torch.allclose(plain.forward(entering, plain.new_cache(TOKENS, rows=2)), leaving, atol=1e-3)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_history_token_by_token_gives_what_it_gives_at_once(tmp_path, name):
    checkpoint = checkpoint_of("llama", tmp_path)
    entering, leaving = around_blocks(whole_quantised(tmp_path, name), 1, 3)
    span = span_of(checkpoint, name, 1, 3)
    cache = span.new_cache(TOKENS, rows=2)
    output = torch.cat([span.forward(token, cache) for token in entering.split(1, dim=1)], dim=1)
    tolerance = 2e-5 if span.dtype == torch.float32 else 0.02
    torch.testing.assert_close(output, leaving, atol=tolerance * float(leaving.abs().max()), rtol=0)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2_moe", "deepseek_v3"])
def test_a_block_weighs_what_the_memory_plan_counts(tmp_path, family, name):
    checkpoint = checkpoint_of(family, tmp_path)
    span = span_of(checkpoint, name, 1, 4)
    planned = SCHEMES[name].block_bytes(checkpoint.config, span.dtype)
    assert [weight_bytes(layer) for layer in span._trunk.layers] == planned[1:4]
    assert all(planned[block] < checkpoint.span_bytes(block, block + 1, span.dtype) for block in range(NUM_BLOCKS))


@pytest.mark.parametrize("name", SCHEMES)
def test_every_linear_layer_is_quantised_and_none_is_laid_out_anew(tmp_path, name):
    span = span_of(checkpoint_of("gpt_neox", tmp_path), name, 0, 4)
    linears = [module for module in span._model.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 4 * NUM_BLOCKS
    assert {type(linear.weight) for linear in linears} == {TENSORS[name]}


def test_weights_as_stored_are_held_one_block_at_a_time(tmp_path):
    checkpoint = checkpoint_of("llama", tmp_path)
    alive, seen = [], []

    def load_block(block):
        seen.append((block, sum(reference() is not None for reference in alive)))
        tensors = checkpoint.load_span(block, block + 1, dtype=torch.float32)
        alive.extend(weakref.ref(tensor) for name, tensor in tensors.items() if "_proj" in name)
        return tensors

    build_quantised_span(checkpoint.config, load_block, 0, 4, scheme=SCHEMES["int8"], dtype=torch.float32, device=CPU)
    assert len(alive) == 7 * NUM_BLOCKS
    assert seen == [(block, 0) for block in range(NUM_BLOCKS)]


def test_layers_that_four_bits_do_not_divide_are_left_as_they_are(tmp_path):
    checkpoint = checkpoint_of("deepseek_v3", tmp_path)
    attention = span_of(checkpoint, "int4", 0, 1)._trunk.layers[0].self_attn
    assert attention.kv_b_proj.weight.shape[1] == 16
    assert type(attention.kv_b_proj.weight) is nn.Parameter
    assert type(attention.q_a_proj.weight) is Int4OpaqueTensor


def test_a_family_whose_blocks_have_no_linear_layers_is_refused_before_any_weight_is_read():
    config = build("gpt2", FAMILIES["gpt2"]).config
    with pytest.raises(UnsupportedFamily, match=r"int8 finds no linear layer .* gpt2"):
        SCHEMES["int8"].block_bytes(config, torch.float32)


def test_an_unknown_scheme_and_a_checkpoint_that_is_quantised_already_are_refused():
    config = build("llama", FAMILIES["llama"]).config
    assert find_scheme("int8", config) is SCHEMES["int8"]
    with pytest.raises(UserError, match="'int3'; choose one of: int8, int4"):
        find_scheme("int3", config)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UserError, match=r"quantised already \(gptq\); leave out --quantize int8"):
        find_scheme("int8", config)


def test_four_bits_compute_in_bfloat16_and_eight_in_what_was_asked_for():
    assert SCHEMES["int8"].compute_dtype("auto", torch.float32) == torch.float32
    assert SCHEMES["int8"].compute_dtype("float16", torch.float16) == torch.float16
    assert SCHEMES["int4"].compute_dtype("auto", torch.float32) == torch.bfloat16
    assert SCHEMES["int4"].compute_dtype("bfloat16", torch.bfloat16) == torch.bfloat16
    with pytest.raises(UserError, match="bfloat16 only; leave out --dtype float32"):
        SCHEMES["int4"].compute_dtype("float32", torch.float32)


def test_a_device_that_a_scheme_does_not_run_on_is_named_with_what_does():
    for scheme in SCHEMES.values():
        scheme.check_machine(CPU)
    with pytest.raises(
        UserError, match="int4 does not run on cuda, only on cpu; choose --quantize int8 or leave it out"
    ):
        SCHEMES["int4"].check_machine(torch.device("cuda"))
    with pytest.raises(UserError, match="int8 does not run on mps, only on cpu and cuda; leave it out"):
        SCHEMES["int8"].check_machine(torch.device("mps"))


def test_a_missing_library_is_named_with_the_command_that_brings_it_and_has_an_exit_code_of_its_own(monkeypatch):
    monkeypatch.setattr(quantise, "is_torchao_available", lambda: False)
    with pytest.raises(
        QuantizerMissing, match=r'int4 needs .* torchao.*: pip install "efedllm\[quantized\]"'
    ) as caught:
        SCHEMES["int4"].check_machine(CPU)
    assert exit_code(caught.value) == 27
    assert exit_code(UserError("")) != 27


def test_a_quantised_checkpoint_that_does_not_run_here_is_refused_in_one_sentence_of_transformers_reason():
    config = build("llama", FAMILIES["llama"]).config
    assert stored_method(config) is None
    check_stored(config, CPU)
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(QuantizerMissing, match=r"quantised \(gptq\).*transformers says: .*GPTQ.* requires") as caught:
        check_stored(config, CPU)
    assert "\n" not in str(caught.value)
    config.quantization_config = TorchAoConfig(Int8WeightOnlyConfig()).to_dict()
    with pytest.raises(QuantizerMissing, match="torchao has quantised cannot be served in spans"):
        check_stored(config, CPU)
