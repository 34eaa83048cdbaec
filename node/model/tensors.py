"""Tensors to payload bytes and back; the compute thread's side of the wire.

A raw codec names the dtype that travels, and writing and reading copy nothing when dtype and layout already fit. The
codec ``int8`` sends one byte per element and one float16 scale per block of the hidden dimension:

    | scales [rows, tokens, blocks] float16 | values [rows, tokens, hidden] int8 |      element = value * its scale

Both directions compute on the device of the tensor, so that only payload bytes travel to and from it; to and from a GPU
they go through pinned memory.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from node.errors import LocalError

CODEC_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtype that each raw codec sends."""
BLOCK = 64
"""Elements along the hidden dimension that share a scale; the last block may be shorter."""
_SCALE_BYTES = 2
_CPU = torch.device("cpu")
_LARGEST_VALUE = 127
_SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16; the scale of a block of zeros too, so that nothing is divided by zero."""
_LARGEST_SCALE = torch.finfo(torch.float16).max
_LARGEST_ELEMENT = _LARGEST_VALUE * _LARGEST_SCALE
"""What no scale reaches travels as this."""


def codec_of(dtype: torch.dtype) -> str:
    """Return the codec that carries ``dtype`` without loss."""
    for codec, known in CODEC_DTYPES.items():
        if known == dtype:
            return codec
    raise LocalError(f"No codec carries {dtype}.")


def to_payload(hidden: torch.Tensor, codec: str) -> memoryview:
    """Return ``hidden`` in ``codec``, row-major; a raw codec gives a view where possible.

    Args:
        hidden: ``[rows, tokens, hidden]``, any float dtype and device.
        codec: a raw codec, or ``int8``.
    """
    hidden = hidden.detach()
    if codec in CODEC_DTYPES:
        ready = _to_host(hidden.to(CODEC_DTYPES[codec]).contiguous()).view(torch.uint8)
    else:
        ready = _to_host(_quantise(hidden))
    return memoryview(ready.numpy()).cast("B")


def from_payload(
    payload: bytes | bytearray | memoryview,
    shape: tuple[int, ...],
    codec: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return the tensor of ``shape`` that ``payload`` holds, in ``dtype`` on ``device``.

    The size must have been checked against shape and codec (``wire.decode`` does). The bytes may be anybody's: ``int8``
    gives finite numbers whatever they are, the raw codecs give the numbers that stand there, NaN and infinities too.
    """
    writable = payload if not memoryview(payload).readonly else bytearray(payload)  # torch warns of read-only memory.
    if codec in CODEC_DTYPES:
        return _to_device(torch.frombuffer(writable, dtype=CODEC_DTYPES[codec]).reshape(shape), device).to(dtype)
    return _dequantise(_to_device(torch.frombuffer(writable, dtype=torch.uint8), device), shape, dtype)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in the host's memory, complete."""
    if not tensor.is_cuda:
        return tensor.to(_CPU)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor``, which lies in the host's memory, on ``device``; on a GPU for work that comes behind."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it has been read.


def _quantise(hidden: torch.Tensor) -> torch.Tensor:
    """Return the bytes of the codec ``int8`` for ``hidden`` ``[rows, tokens, hidden]``, uint8 on the same device.

    A scale is absmax / 127 of its block rounded up to float16: no value is clipped, even where float16 is coarse.
    """
    hidden_size = hidden.shape[-1]
    missing = -hidden_size % BLOCK
    blocks = (pad(hidden, (0, missing)) if missing else hidden).float().reshape(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    if not largest.max().item() <= _LARGEST_ELEMENT:  # This way round it holds for a NaN too.
        blocks = blocks.nan_to_num(nan=0.0).clamp_(-_LARGEST_ELEMENT, _LARGEST_ELEMENT)
        largest = blocks.abs().amax(dim=1, keepdim=True)
    exact = largest.div_(_LARGEST_VALUE).clamp_min_(_SMALLEST_SCALE)
    scales = exact.half()
    scales.view(torch.int16).add_(scales.float() < exact)  # The next float16 up is the next integer up.
    values = (blocks / scales.float()).round_()
    if missing:
        values = values.view(-1, hidden_size + missing)[:, :hidden_size]
    packed = torch.empty(_SCALE_BYTES * scales.numel() + hidden.numel(), dtype=torch.uint8, device=hidden.device)
    scale_bytes, value_bytes = _split(packed, scales.numel())
    scale_bytes.view(torch.float16).view(scales.shape).copy_(scales)
    value_bytes.view(torch.int8).view(values.shape).copy_(values)
    return packed


def _dequantise(packed: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return the hidden states of ``shape`` whose ``int8`` bytes are ``packed``, finite in ``dtype`` always."""
    rows, tokens, hidden_size = shape
    num_blocks = -(-hidden_size // BLOCK)
    scale_bytes, value_bytes = _split(packed, rows * tokens * num_blocks)
    scales = scale_bytes.view(torch.float16).float()
    scales = scales.nan_to_num_(nan=0.0, posinf=_LARGEST_SCALE, neginf=-_LARGEST_SCALE)
    values = value_bytes.view(torch.int8)
    if hidden_size % BLOCK:
        factors = scales.view(rows, tokens, num_blocks).repeat_interleave(BLOCK, dim=-1)[..., :hidden_size]
        hidden = values.view(shape) * factors
    else:
        hidden = (values.view(-1, BLOCK) * scales.unsqueeze(-1)).view(shape)
    if torch.finfo(dtype).max < _LARGEST_ELEMENT + _LARGEST_SCALE:  # A value may be -128.
        hidden.clamp_(torch.finfo(dtype).min, torch.finfo(dtype).max)
    return hidden.to(dtype)


def _split(packed: torch.Tensor, num_scales: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bytes of the scales and those of the values."""
    return packed[: num_scales * _SCALE_BYTES], packed[num_scales * _SCALE_BYTES :]
