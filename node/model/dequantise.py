"""Quantised weights as the plain float32 numbers that they stand for: to compute with them as exactly as can be.

A server multiplies by its packed weights in its own dtype. Whoever wants to know what those weights give without that
dtype's rounding needs the numbers. A scheme whose library does not hand them out is asked for the product with the
identity, each entry of which is one weight. Runs where weights are loaded, on the device that the scheme runs on.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.inference_mode()
def dequantise(model: nn.Module) -> None:
    """Replace every linear layer of ``model`` whose weight is quantised, and make all of it float32."""
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and hasattr(child.weight, "__tensor_flatten__"):
                setattr(parent, name, _plain(child))
    nn.Module.float(model)  # Not its own, by which transformers refuses what has been quantised.


def _plain(layer: nn.Linear) -> nn.Linear:
    weight = _numbers(layer)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    return plain


def _numbers(layer: nn.Linear) -> torch.Tensor:
    """Return the weight of ``layer``, ``[out, in]`` in float32."""
    try:
        numbers: torch.Tensor = layer.weight.dequantize()
    except NotImplementedError:  # Packed for its kernel, which alone can read it.
        identity = torch.eye(layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
        product = layer(identity)
        numbers = (product if layer.bias is None else product - layer.bias).t()
    return numbers.float().contiguous()
