"""Token ids and logits to payload bytes and back: what travels to and from clients that hold no weights.

    codec ids       | ids [rows, tokens] uint32 |
    codec logits    | ids [rows, positions, k] uint32 | logits [rows, positions, k] float32 |

Little-endian, row-major. Runs where the tensors are: in a server's compute thread, or in the client's caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ITEM_BYTES = 4
"""Of an id and of a logit."""


def ids_to_payload(ids: torch.Tensor) -> memoryview:
    """Return ``ids`` (any shape, integers from 0) in the codec ``ids``."""
    # torch computes little with unsigned integers; below 2**31, where vocabularies end, both have the same bytes.
    ready = ids.detach().to(device="cpu", dtype=torch.int32).contiguous()
    return memoryview(ready.view(torch.uint8).numpy()).cast("B")


def ids_from_payload(payload: bytes | bytearray | memoryview, shape: Sequence[int]) -> torch.Tensor:
    """Return the ids of ``shape`` that ``payload`` holds, int64 from 0 to 2**32 - 1; the size has been checked."""
    if not len(payload):
        return torch.empty(tuple(shape), dtype=torch.long)
    signed = torch.frombuffer(bytearray(payload), dtype=torch.int32).reshape(tuple(shape))
    return signed.long() & 0xFFFFFFFF


def logits_to_payload(ids: torch.Tensor, logits: torch.Tensor) -> memoryview:
    """Return ids and their logits, ``[rows, positions, k]`` both, in the codec ``logits``."""
    values = logits.detach().to(device="cpu", dtype=torch.float32).contiguous().view(torch.uint8).flatten()
    return memoryview(bytes(ids_to_payload(ids)) + bytes(memoryview(values.numpy()).cast("B")))


def logits_from_payload(
    payload: bytes | bytearray | memoryview, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids (int64) and logits (float32) of ``shape`` that ``payload`` holds; the size has been checked."""
    view = memoryview(payload).cast("B")
    half = len(view) // 2
    logits = torch.frombuffer(bytearray(view[half:]), dtype=torch.float32).reshape(tuple(shape))
    return ids_from_payload(view[:half], shape), logits
