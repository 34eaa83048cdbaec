"""The span that work is checked against: float32 on the weights that the server declares, in whatever it holds them.

A server in bfloat16 has rounded the stored weights to bfloat16: so are they here, and then computed with in float32.
One in int8 or int4 has quantised them by a recipe that everyone has: here they are quantised likewise, and computed
with as the numbers that they stand for. Loading takes seconds: ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from node.model.checkpoint import Checkpoint
from node.model.quantise import SCHEMES
from node.model.span import Span, build_dequantised_span, build_span

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)
"""Ways to hold weights that are dtypes; the others are schemes of ``node.model.quantise``."""
HELD_IN = (*DTYPES, *SCHEMES)
"""Every way to hold weights that a server can declare."""


def reference_span(checkpoint: Checkpoint, held_in: str, start: int, end: int, device: torch.device) -> Span:
    """Load the blocks ``[start, end)`` to check servers that hold them in ``held_in``.

    Raises:
        UserError: there is no such way to hold weights, or the library for it is not here.
        UnsupportedFamily, DamagedCheckpoint: as for a server.
    """
    if held_in in DTYPES:
        stored = checkpoint.load_span(start, end, dtype=DTYPES[held_in])
        tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        return build_span(checkpoint.config, tensors, start, end, dtype=torch.float32, device=device)
    scheme = SCHEMES[held_in]
    scheme.check_machine(torch.device("cpu"))
    dtype = scheme.dtype or torch.float32
    return build_dequantised_span(
        checkpoint.config,
        lambda block: checkpoint.load_span(block, block + 1, dtype=dtype),
        start,
        end,
        scheme=scheme,
        device=device,
    )
