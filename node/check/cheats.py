"""Dishonest servers, as a calibration measures itself against: cheaper weights, and work left undone.

Each cheat is what a server would do that declares other weights than it has, or that saves itself a part of the work.
They are run beside the honest variants to say what separates from them and what does not. Nobody serves with them. Runs
in the compute thread; randomness comes from a generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch

from node.check.honest import together
from node.model.span import Span

Spoil: TypeAlias = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Takes a weight ``[out, in]`` in float32 and gives what the cheat has in its place."""
Cheat: TypeAlias = Callable[[Span, torch.Tensor, torch.Generator], torch.Tensor]
"""Takes a span and ``[texts, positions, hidden]``, and gives what the cheat sends in place of the outputs."""

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 levels of NormalFloat-4: QLoRA, arXiv 2305.14314, appendix E."""
_NF4_GROUP = 64
_CHUNK = 64
_LARGEST_FP8 = 448.0
_SMALLEST_SCALE = 1e-12


def int8(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round to 8 bits, one scale per output."""
    del generator
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST_SCALE) / 127
    return (weight / scale).round().clamp(-127, 127) * scale


def fp8(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round to 8-bit floats (e4m3), one scale per output."""
    del generator
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST_SCALE) / _LARGEST_FP8
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def nf4(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round to the 16 levels of NF4, one scale per 64 weights."""
    del generator
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % _NF4_GROUP)).reshape(-1, _NF4_GROUP)
    scale = padded.abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST_SCALE)
    levels = torch.tensor(_NF4)
    middles = (levels[1:] + levels[:-1]) / 2
    rounded = levels[torch.bucketize(padded / scale, middles)] * scale
    return rounded.flatten()[: flat.numel()].reshape(weight.shape)


def svd(share: float) -> Spoil:
    """Return what keeps the largest singular values: ``share`` of their number."""

    def truncate(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        del generator
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = max(1, round(share * len(values)))
        return (left[:, :rank] * values[:rank]) @ right[:rank]

    return truncate


def drift(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move every weight by 1 % of the weights' root mean square: a checkpoint of some steps later."""
    return weight + 0.01 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)


SPOILED: Mapping[str, Spoil] = MappingProxyType(
    {"int8": int8, "fp8": fp8, "nf4": nf4, "SVD 90 %": svd(0.9), "SVD 50 %": svd(0.5), "drift 1 %": drift}
)
"""Weights that differ from the declared ones."""


def spoil(tensors: Mapping[str, torch.Tensor], how: Spoil, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return the tensors of a span with every matrix spoiled, stacked ones matrix by matrix; each keeps its dtype."""
    return {name: _spoil(tensor, how, generator) for name, tensor in tensors.items()}


def _spoil(tensor: torch.Tensor, how: Spoil, generator: torch.Generator) -> torch.Tensor:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    if tensor.dim() > 2:
        return torch.stack([_spoil(one, how, generator) for one in tensor])
    return how(tensor.float().cpu(), generator).to(tensor)


def skip_layer(span: Span, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Leave out the block in the middle; of one block, all that there is."""
    del generator
    skipped = (span.start + span.end) // 2
    if skipped > span.start:
        hidden = together(span.view(span.start, skipped), hidden)
    return together(span.view(skipped + 1, span.end), hidden) if skipped + 1 < span.end else hidden


def forget_prefix(span: Span, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Keep no cache beyond a chunk: each one is run as a text of its own. The first is honest so, and left out."""
    del generator
    return torch.cat([together(span, chunk) for chunk in hidden.split(_CHUNK, dim=1)[1:]], dim=1)


def add_noise(span: Span, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change what the span adds by 5 %, at random."""
    outputs = together(span, hidden)
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    return outputs + 0.05 * (outputs - hidden) * noise


def return_input(span: Span, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Compute nothing."""
    del span, generator
    return hidden


FORGETFUL = "forgotten prefix"
"""Shows in texts of more than one chunk only."""
LAZY: Mapping[str, Cheat] = MappingProxyType(
    {
        "skipped layer": skip_layer,
        FORGETFUL: forget_prefix,
        "noise 5 %": add_noise,
        "identity": return_input,
    }
)
"""Work that differs from what the weights give."""
