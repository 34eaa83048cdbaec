"""Layers laid out anew at load: what decoding on a CPU spends its time in.

A plain ``nn.Linear`` hands row-major weights to a general matrix multiplication, which repacks them or reads them badly
for few rows. Two layouts do better; they round sums in another order, so results agree to rounding, not bit for bit.

    layout              for               against nn.Linear, time (docs/benchmarks.md)
    PackedLinear        a server's span   one row 0.7 to 1, eight rows 0.5, a long prefill 0.75
    TransposedLinear    a client's head   one row 0.5, eight rows 0.8, never slower

A span's layers that read the same input (queries, keys and values; gate and up) are multiplied in one go, and its RMS
norms are one kernel instead of six: fewer calls between the multiplications, 2 to 4 % of a forward.

Only for inference in float32 on a CPU; everywhere else the layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_PACKED_FOR_ROWS = 8
"""Rows that the layout is chosen for; measured to serve 1, 8, 64 and 512 rows best."""

_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that families call one after the other on the same input."""


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` with the weight in oneDNN's own layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)  # noqa: SLF001
        self.bias = None if bias is None else bias.detach()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map ``hidden`` (``[..., in_features]``) to ``[..., out_features]``."""
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            hidden, self.weight, self.bias, "none", [], ""
        )
        return product

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Linear`` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Joined:
    """Linear layers that read the same input, as one ``PackedLinear``; remembers it until all have been asked.

    Nobody may change the input in place between the first and the last.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        weights, biases = zip(*map(_weight_and_bias, layers), strict=True)
        has_bias = biases[0] is not None
        self._linear = PackedLinear(torch.cat(weights), torch.cat(biases) if has_bias else None)
        self._sizes = [len(weight) for weight in weights]
        self._hidden: torch.Tensor | None = None
        self._products: dict[int, torch.Tensor] = {}
        """What has not been asked for yet, by the number of the layer."""

    def product(self, hidden: torch.Tensor, index: int) -> torch.Tensor:
        """Return what the layer ``index`` makes of ``hidden``."""
        if hidden is not self._hidden or index not in self._products:
            self._hidden, self._products = hidden, dict(enumerate(self._linear(hidden).split(self._sizes, dim=-1)))
        product = self._products.pop(index)
        if not self._products:
            self._hidden = None
        return product


class JoinedLinear(nn.Module):
    """One of several linear layers that read the same input and are computed together."""

    def __init__(self, joined: _Joined, index: int) -> None:
        super().__init__()
        self._joined = joined
        self._index = index

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map ``hidden`` (``[..., in_features]``) to ``[..., out_features]``, a view into what all of them give."""
        return self._joined.product(hidden, self._index)


class FusedNorm(nn.Module):
    """An RMS norm in one kernel."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Norm ``hidden`` (``[..., size]``) over its last dimension."""
        return torch.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


class TransposedLinear(nn.Linear):
    """``nn.Linear`` whose weight lies column by column, so that one row streams through it; the weight is a view."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)


def can_pack() -> bool:
    """Say whether this build of torch has what packing needs."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(module: nn.Module) -> None:
    """Replace the linear layers and norms inside ``module`` by faster ones, each old weight freed as it goes.

    A layer of a derived class, a weight that is shared, quantised, trained, or not float32 on a CPU stays as it is.
    """
    if can_pack():
        _join_linears(module)
        _replace_linears(module, PackedLinear)
    _fuse_norms(module)


def transpose_linears(module: nn.Module) -> None:
    """Replace the linear layers inside ``module`` by transposed ones, with the exceptions of ``pack``."""
    _replace_linears(module, TransposedLinear)


def _join_linears(module: nn.Module) -> None:
    uses = _count_uses(module)
    for parent in module.modules():
        for names in _READ_TOGETHER:
            layers = [getattr(parent, name, None) for name in names]
            if all(_is_replaceable(layer, uses) for layer in layers) and _have_one_form(layers):
                joined = _Joined(layers)
                for index, name in enumerate(names):
                    setattr(parent, name, JoinedLinear(joined, index))


def _have_one_form(layers: Sequence[Any]) -> bool:
    """Say whether layers take inputs of the same size, and all of them add a bias or none."""
    forms = {(_weight_and_bias(layer)[0].shape[1], layer.bias is None) for layer in layers}
    return len(forms) == 1


def _replace_linears(module: nn.Module, layout: type[PackedLinear] | type[TransposedLinear]) -> None:
    uses = _count_uses(module)
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if _is_replaceable(child, uses):
                setattr(parent, name, layout(*_weight_and_bias(child)))


def _count_uses(module: nn.Module) -> dict[int, int]:
    """Return how many modules hold each parameter, by its ``id``."""
    uses: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return uses


def _weight_and_bias(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a layer's weight as ``[out_features, in_features]``, and its bias."""
    return layer.weight if type(layer) is nn.Linear else layer.weight.t().contiguous(), layer.bias


def _is_replaceable(layer: Any, uses: dict[int, int]) -> bool:
    return type(layer) in (nn.Linear, Conv1D) and uses[id(layer.weight)] == 1 and _is_plain(layer.weight)


@torch.inference_mode()
def _fuse_norms(module: nn.Module) -> None:
    """Replace the norms that compute what one kernel does; found by trying, because families name theirs alike."""
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            weight = getattr(child, "weight", None)
            epsilon = getattr(child, "variance_epsilon", getattr(child, "eps", None))
            if not type(child).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
                continue
            if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not _is_plain(weight):
                continue
            fused = FusedNorm(weight, epsilon)
            with contextlib.suppress(Exception):  # A norm that wants more than its input is another kind.
                if all(
                    torch.allclose(fused(sample), child(sample), rtol=1e-5, atol=1e-7) for sample in _samples(weight)
                ):
                    setattr(parent, name, fused)


def _samples(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return inputs for a norm: small ones, where epsilon counts, and large ones, which some would clamp."""
    numbers = torch.linspace(-1, 2, 3 * len(weight)).reshape(1, 3, len(weight))
    return [1e-2 * numbers, 1e2 * numbers]


def _is_plain(weight: torch.Tensor) -> bool:
    # A quantised weight is a tensor of a class of its own, which says float32 of itself when it computes in that.
    is_whole = type(weight.data) is torch.Tensor
    return is_whole and weight.dtype == torch.float32 and weight.device.type == "cpu" and not weight.requires_grad
