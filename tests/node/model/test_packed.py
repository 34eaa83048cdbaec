"""Packed linear layers give what plain ones give, and what cannot be packed stays as it was."""

import weakref

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from node.model.packed import (
    FusedNorm,
    JoinedLinear,
    PackedLinear,
    TransposedLinear,
    can_pack,
    pack,
    transpose_linears,
)

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
    pack(holder)
    assert isinstance(holder.layer, PackedLinear)
    assert (holder.layer.in_features, holder.layer.out_features) == (48, 20)
    torch.testing.assert_close(holder.layer(hidden), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_gpt2s_transposed_layers_are_packed_too():
    torch.manual_seed(0)
    holder = holder_of(layer=Conv1D(20, 48))
    hidden = torch.randn(2, 3, 48)
    expected = holder.layer(hidden)
    pack(holder)
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
    pack(holder)
    assert dict(holder.named_children()) == before
    assert holder.trained is trained


def test_layers_at_any_depth_are_packed():
    holder = holder_of(inner=nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"deep": nn.Linear(4, 4)})))
    pack(holder)
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


class Reader(nn.Module):
    """Reads its layers as attention does, or wrongly on purpose."""

    def __init__(self, bias=False, value_bias=None):
        super().__init__()
        self.q_proj = nn.Linear(16, 12, bias=bias)
        self.k_proj = nn.Linear(16, 4, bias=bias)
        self.v_proj = nn.Linear(16, 8, bias=bias if value_bias is None else value_bias)

    def forward(self, first, second, third):
        return self.q_proj(first), self.k_proj(second), self.v_proj(third)


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_layers_that_read_one_input_are_computed_together(bias, monkeypatch):
    torch.manual_seed(0)
    reader = Reader(bias).requires_grad_(False)
    hidden, other = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    expected = [reader(*inputs) for inputs in ((hidden,) * 3, (hidden, other, hidden), (other, hidden, hidden))]
    pack(reader)
    assert {type(child) for child in reader.children()} == {JoinedLinear}
    multiplied = []
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: (multiplied.append(x), forward(self, x))[1])
    counts = []
    for inputs, outputs in zip(
        ((hidden,) * 3, (hidden, other, hidden), (other, hidden, hidden)), expected, strict=True
    ):
        multiplied.clear()
        torch.testing.assert_close(reader(*inputs), outputs, atol=1e-5, rtol=1e-5)
        counts.append(len(multiplied))
    assert counts == [1, 3, 2]  # right whatever is read; one multiplication when it is the same


@torch.inference_mode()
def test_joined_layers_may_be_read_in_any_order_and_keep_nothing(monkeypatch):
    torch.manual_seed(0)
    reader = Reader().requires_grad_(False)
    hidden = torch.randn(2, 5, 16)
    expected = [reader.k_proj(hidden), reader.v_proj(hidden), reader.q_proj(hidden)]
    pack(reader)
    multiplied = []
    forward = PackedLinear.forward
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: (multiplied.append(1), forward(self, x))[1])
    torch.testing.assert_close([reader.k_proj(hidden), reader.v_proj(hidden), reader.q_proj(hidden)], expected)
    assert len(multiplied) == 1
    kept = weakref.ref(hidden)
    del hidden
    assert kept() is None


def test_layers_of_different_forms_are_not_joined():
    reader = Reader(bias=True, value_bias=False).requires_grad_(False)
    pack(reader)
    assert {type(child) for child in reader.children()} == {PackedLinear}


class RMSNorm(nn.Module):
    """As most families write it, or scaled from one as some do."""

    def __init__(self, offset=0.0, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 32))
        self.variance_epsilon = epsilon
        self.offset = offset

    def forward(self, hidden):
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.weight + self.offset) * (hidden * scale)


class GatedRMSNorm(RMSNorm):
    def forward(self, hidden, gate):
        return super().forward(hidden) * gate


class ClampedRMSNorm(RMSNorm):
    def forward(self, hidden):
        return super().forward(hidden.clamp(-1, 1))


@torch.inference_mode()
def test_a_norm_that_one_kernel_computes_is_replaced_and_no_other():
    holder = holder_of(
        plain=RMSNorm(),
        offset=RMSNorm(offset=1.0),
        other=RMSNorm(epsilon=1e-3),
        gated=GatedRMSNorm(),
        clamped=ClampedRMSNorm(),
    )
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    expected = holder.plain(hidden)
    pack(holder)
    assert [type(child) for child in holder.children()] == [FusedNorm, RMSNorm, RMSNorm, GatedRMSNorm, ClampedRMSNorm]
    torch.testing.assert_close(holder.plain(hidden), expected, atol=1e-5, rtol=1e-5)
