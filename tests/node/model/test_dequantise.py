"""Dequantised weights are the numbers that a server multiplies by, and compute what it computes but for rounding."""

import pytest
import torch
from torch import nn

from node.model.checkpoint import Checkpoint
from node.model.quantise import SCHEMES
from node.model.span import build_dequantised_span, build_quantised_span
from tests.families import FAMILIES, build

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 128}
ROOM = {"int8": 2e-6, "int4": 1e-2}
"""int8 is computed in float32, int4 in bfloat16."""


def spans_of(family, name, directory):
    build(family, {**FAMILIES[family], **WIDE}).save_pretrained(directory)
    checkpoint, scheme = Checkpoint.open(str(directory)), SCHEMES[name]
    dtype = scheme.dtype or torch.float32

    def load_block(block):
        return checkpoint.load_span(block, block + 1, dtype=dtype)

    packed = build_quantised_span(checkpoint.config, load_block, 1, 3, scheme=scheme, dtype=dtype, device=CPU)
    plain = build_dequantised_span(checkpoint.config, load_block, 1, 3, scheme=scheme, device=CPU)
    return packed, plain


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "int8"), ("llama", "int4"), ("gpt_neox", "int8"), ("gpt_neox", "int4")]
)
def test_a_dequantised_span_gives_in_float32_what_the_packed_one_gives(tmp_path, family, name):
    packed, plain = spans_of(family, name, tmp_path)
    assert plain.dtype == torch.float32
    hidden = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0)).to(packed.dtype)
    due = plain.forward(hidden.float(), plain.new_cache(7, 2))
    given = packed.forward(hidden, packed.new_cache(7, 2)).float()
    assert float((given - due).norm() / due.norm()) < ROOM[name]


def test_no_weight_of_it_is_quantised_any_more(tmp_path):
    _, plain = spans_of("llama", "int4", tmp_path)
    for parameter in plain._model.parameters():
        assert type(parameter) is nn.Parameter
        assert parameter.dtype == torch.float32
