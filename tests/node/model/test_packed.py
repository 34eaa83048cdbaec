"""Packed linear layers give what plain ones give, and what cannot be packed stays as it was."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from node.model.packed import PackedLinear, TransposedLinear, can_pack, pack_linears, transpose_linears

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")


def holder_of(**children):
    holder = nn.Module()
    for name, child in children.items():
        holder.add_module(name, child)
    return holder.requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (1, 33), (3, 7)])
@torch.inference_mode()
def test_a_packed_layer_gives_what_the_plain_one_gives(bias, shape):
    torch.manual_seed(0)
    holder = holder_of(layer=nn.Linear(48, 20, bias=bias))
    hidden = torch.randn(*shape, 48)
    expected = holder.layer(hidden)
    pack_linears(holder)
    assert isinstance(holder.layer, PackedLinear)
    assert (holder.layer.in_features, holder.layer.out_features) == (48, 20)
    torch.testing.assert_close(holder.layer(hidden), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_gpt2s_transposed_layers_are_packed_too():
    torch.manual_seed(0)
    holder = holder_of(layer=Conv1D(20, 48))
    hidden = torch.randn(2, 3, 48)
    expected = holder.layer(hidden)
    pack_linears(holder)
    assert isinstance(holder.layer, PackedLinear)
    torch.testing.assert_close(holder.layer(hidden), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_trained_derived_and_shared_layers_stay_as_they_are():
    class Derived(nn.Linear):
        pass

    embedding, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = embedding.weight
    holder = holder_of(coarse=nn.Linear(4, 4).bfloat16(), derived=Derived(4, 4), embedding=embedding, head=head)
    trained = nn.Linear(4, 4)
    holder.trained = trained
    before = dict(holder.named_children())
    pack_linears(holder)
    assert dict(holder.named_children()) == before
    assert holder.trained is trained


def test_layers_at_any_depth_are_packed():
    holder = holder_of(inner=nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"deep": nn.Linear(4, 4)})))
    pack_linears(holder)
    assert [type(module) for module in holder.modules()].count(PackedLinear) == 2
    assert not any(isinstance(module, nn.Linear) for module in holder.modules())


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_transposed_layer_gives_what_the_plain_one_gives_and_keeps_its_weight_in_sight(bias):
    torch.manual_seed(0)
    holder = holder_of(layer=nn.Linear(48, 20, bias=bias))
    weight = holder.layer.weight
    for hidden in torch.randn(1, 1, 48), torch.randn(8, 1, 48), torch.randn(3, 7, 48):
        expected = nn.functional.linear(hidden, weight, holder.layer.bias)
        transpose_linears(holder)
        assert isinstance(holder.layer, TransposedLinear)
        torch.testing.assert_close(holder.layer(hidden), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(holder.layer.weight, weight)
    assert holder.layer.weight.stride() == (1, 20)
