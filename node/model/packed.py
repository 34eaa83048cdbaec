"""Linear layers with weights packed for oneDNN: what decoding on a CPU spends its time in.

A plain ``nn.Linear`` hands row-major weights to a general matrix multiplication, which repacks them or reads them badly
for one or a few rows. Packed once at load, the same product is 1.2 to 1.5 times as fast for one row, twice for eight
and 1.3 times for a long prefill (docs/benchmarks.md). Sums are rounded in another order, so results agree to rounding
and not bit for bit. Only for inference in float32 on a CPU; everywhere else the layers stay as they are.
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


def can_pack() -> bool:
    """Say whether this build of torch has what packing needs."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(module: nn.Module) -> None:
    """Replace the float32 CPU linear layers inside ``module`` by packed ones, each old weight freed as it goes.

    A layer of a derived class, a shared weight or a weight that is trained stays as it is.
    """
    if not can_pack():
        return
    uses: dict[int, int] = {}
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, Conv1D) and _is_packable(child) and uses[id(child.weight)] == 1:
                weight = child.weight if type(child) is nn.Linear else child.weight.t().contiguous()
                setattr(parent, name, PackedLinear(weight, child.bias))


def _is_packable(layer: nn.Module) -> bool:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and not weight.requires_grad
