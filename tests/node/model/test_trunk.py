"""A trimmed trunk sees a config of its own layers, and keeps the layers whose weights are read as they are."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from node.model.trunk import ReadLinear, find_trunk, keep_only_layers, slice_config

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
JAMBA = {**SHAPE, "num_hidden_layers": 5, "num_experts": 2, "attn_layer_period": 3, "attn_layer_offset": 1}


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("bamba", {"num_hidden_layers": 5, "attn_layer_indices": [1, 4]}),
        ("jamba", {"num_hidden_layers": 5, "attn_layer_period": 3, "attn_layer_offset": 1}),
        ("nemotron_h", {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp", "linear_attention"]}),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"], "num_hidden_layers": 5}),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 4), (4, 5), (0, 5)])
def test_the_kinds_of_a_slice_are_those_of_its_layers_even_where_a_family_computes_them(family, values, start, end):
    config = CONFIG_MAPPING[family](**values)
    whole = list(config.layer_types)
    sliced = slice_config(config, start, end)
    assert list(sliced.layer_types) == whole[start:end]
    assert sliced.num_hidden_layers == end - start
    assert list(config.layer_types) == whole, "the config that was sliced has changed"
    assert isinstance(sliced, type(config))
    again = slice_config(config, start, end)
    assert list(again.layer_types) == whole[start:end]


def test_a_linear_layer_whose_weight_is_read_is_told_apart_from_those_that_are_called():
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING["jamba"](**JAMBA))
    keep_only_layers(find_trunk(model, 5), 2, 4)
    mixer = find_trunk(model, 2).layers[0].mamba
    assert type(mixer.dt_proj) is ReadLinear
    assert type(mixer.in_proj) is torch.nn.Linear
