"""Linear layers with their weights laid out anew at load: what decoding on a CPU spends its time in.

A plain ``nn.Linear`` hands row-major weights to a general matrix multiplication, which repacks them or reads them badly
for few rows. Two layouts do better; they round sums in another order, so results agree to rounding, not bit for bit.

    layout              for               against nn.Linear, time (docs/benchmarks.md)
    PackedLinear        a server's span   one row 0.7 to 1, eight rows 0.5, a long prefill 0.75
    TransposedLinear    a client's head   one row 0.5, eight rows 0.8, never slower

Only for inference in float32 on a CPU; everywhere else the layers stay as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_PACKED_FOR_ROWS = 8
"""Rows that the layout is chosen for; measured to serve 1, 8, 64 and 512 rows best."""


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


class TransposedLinear(nn.Linear):
    """``nn.Linear`` whose weight lies column by column, so that one row streams through it; the weight is a view."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.detach().t().contiguous().t(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)


def can_pack() -> bool:
    """Say whether this build of torch has what packing needs."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers inside ``module`` by packed ones, each old weight freed as it goes.

    A layer of a derived class, a weight that is shared, quantised, trained, or not float32 on a CPU stays as it is.
    """
    if can_pack():
        _replace_linears(module, PackedLinear)


def transpose_linears(module: nn.Module) -> None:
    """Replace the linear layers inside ``module`` by transposed ones, with the exceptions of ``pack_linears``."""
    _replace_linears(module, TransposedLinear)


def _replace_linears(module: nn.Module, layout: type[PackedLinear] | type[TransposedLinear]) -> None:
    uses: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, Conv1D) and _is_replaceable(child) and uses[id(child.weight)] == 1:
                weight = child.weight if type(child) is nn.Linear else child.weight.t().contiguous()
                setattr(parent, name, layout(weight, child.bias))


def _is_replaceable(layer: nn.Module) -> bool:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    # A quantised weight is a tensor of a class of its own, which says float32 of itself when it computes in that.
    is_plain = type(weight.data) is torch.Tensor
    return is_plain and weight.dtype == torch.float32 and weight.device.type == "cpu" and not weight.requires_grad
