"""Tensors to payload bytes and back; the compute thread's side of the wire.

The codec of a session names the dtype that travels raw. Writing copies nothing when dtype and layout already fit.
"""

from __future__ import annotations

import torch

from node.errors import LocalError

CODEC_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def codec_of(dtype: torch.dtype) -> str:
    """Return the codec that carries ``dtype`` without loss."""
    for codec, known in CODEC_DTYPES.items():
        if known == dtype:
            return codec
    raise LocalError(f"No codec carries {dtype}.")


def to_payload(hidden: torch.Tensor, codec: str) -> memoryview:
    """Return the raw bytes of ``hidden`` in the codec's dtype, row-major, as a view where possible."""
    ready = hidden.detach().to(device="cpu", dtype=CODEC_DTYPES[codec]).contiguous()
    return memoryview(ready.view(torch.uint8).numpy()).cast("B")


def from_payload(
    payload: bytes | bytearray | memoryview,
    shape: tuple[int, ...],
    codec: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return the tensor of ``shape`` whose raw bytes are ``payload``, in ``dtype`` on ``device``.

    The size must have been checked against shape and codec (``wire.decode`` does).
    """
    writable = payload if not memoryview(payload).readonly else bytearray(payload)
    return torch.frombuffer(writable, dtype=CODEC_DTYPES[codec]).reshape(shape).to(device=device, dtype=dtype)
