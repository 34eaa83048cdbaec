import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigMismatch
from node.model.block_names import BlockNames, find_block_names


def names_of(layers, numbers, rests=("attn.weight", "mlp.weight")):
    return [f"{layers}.{number}.{rest}" for number in numbers for rest in rests]


@pytest.mark.parametrize(
    "layers",
    [
        "model.layers", "transformer.h", "h", "gpt_neox.layers", "model.decoder.layers", "model.language_model.layers",
        "transformer.blocks", "language_model.model.layers",
    ],
)  # fmt: skip
def test_the_layer_list_of_every_usual_naming_is_found(layers):
    names = ["wte.weight", *names_of(layers, range(12)), "ln_f.weight"]
    found = find_block_names(names, 12)
    assert found == BlockNames(layers, 12)
    assert found.block_of(f"{layers}.11.attn.weight") == 11
    assert found.block_of("wte.weight") is None


def test_experts_are_not_taken_for_blocks():
    rests = [f"mlp.experts.{expert}.up.weight" for expert in range(4)]
    found = find_block_names([*names_of("model.layers", range(4), rests), "lm_head.weight"], 4)
    assert found.layers == "model.layers"
    assert found.block_of("model.layers.2.mlp.experts.3.up.weight") == 2
    assert found.renumber("model.layers.2.mlp.experts.3.up.weight", 1) == "model.layers.1.mlp.experts.3.up.weight"


def test_a_vision_tower_of_as_many_layers_is_not_taken_for_the_language_model():
    names = [
        *names_of("model.vision_tower.encoder.layers", range(4), ["a", "b", "c", "d"]),
        *names_of("model.language_model.layers", range(4)),
    ]
    assert find_block_names(names, 4).layers == "model.language_model.layers"


def test_the_callers_path_decides_between_candidates():
    names = [*names_of("tower.blocks", range(2), ["a", "b", "c"]), *names_of("model.layers", range(2))]
    assert find_block_names(names, 2).layers == "tower.blocks"
    assert find_block_names(names, 2, layers="layers").layers == "model.layers"
    assert find_block_names(names, 2, layers="wrapper.model.layers").layers == "model.layers"


def test_drafting_layers_after_the_last_block_are_allowed_where_the_config_has_them():
    names = names_of("model.layers", range(5))
    found = find_block_names(names, 4, num_extra_blocks=1)
    assert found.block_of("model.layers.4.mlp.weight") == 4
    with pytest.raises(ConfigMismatch):
        find_block_names(names, 4)


@given(st.integers(1, 30), st.integers(1, 30))
def test_another_number_of_blocks_than_the_config_asks_for_is_refused(there, asked):
    names = names_of("model.layers", range(there))
    if there == asked:
        assert find_block_names(names, asked).num_blocks == asked
    else:
        with pytest.raises(ConfigMismatch, match=rf"asks for {asked} blocks and .* the weight files"):
            find_block_names(names, asked)


def test_the_first_missing_block_is_named():
    with pytest.raises(ConfigMismatch, match="block 2 is missing"):
        find_block_names(names_of("h", [0, 1, 3]), 4)


def test_weights_without_any_block_are_refused():
    with pytest.raises(ConfigMismatch, match="hold none"):
        find_block_names(["lm_head.weight"], 4)


@given(st.integers(0, 9), st.integers(0, 9))
def test_renumbering_moves_a_span_to_layer_zero_and_back(start, offset):
    names = BlockNames("model.layers", 20)
    name = f"model.layers.{start + offset}.mlp.experts.7.weight"
    assert names.block_of(names.renumber(name, start)) == offset
    assert names.renumber(names.renumber(name, start), -start) == name


def test_a_name_that_only_begins_like_the_layer_list_is_not_a_block():
    names = BlockNames("h", 4)
    assert names.block_of("head.weight") is None
    assert names.block_of("h.norm.weight") is None
