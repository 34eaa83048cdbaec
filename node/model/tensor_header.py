"""The header of a safetensors file: which tensors it holds, and where.

Every number in a header is checked against the size of the file before anything is read or allocated, so a truncated or
lying file is refused in one sentence. Knows neither models nor hubs: bytes in, tensors' places out. Any thread.

    0        8                8 + n                                    file size
    | n: u64 | n bytes JSON   | tensors, one after another, no holes    |

Format: https://huggingface.co/docs/safetensors (header: little-endian length, JSON, then the buffer).
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from node.errors import DamagedCheckpoint

_MAX_HEADER_BYTES = 100_000_000  # the bound of the reference implementation
_MAX_DIMENSIONS = 32
_PREFIX = struct.Struct("<Q")
_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
# What a change of dtype applies to; eight-bit floats and integers are somebody's quantisation and stay as they are.
_CASTABLE = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies in its file."""

    dtype: torch.dtype  # as stored
    shape: tuple[int, ...]
    begin: int  # first byte, from the start of the file
    size_bytes: int

    def size_bytes_as(self, dtype: torch.dtype | None) -> int:
        """Return the bytes that the tensor takes in memory when loaded with ``dtype`` (None: as stored)."""
        if dtype is None or self.dtype not in _CASTABLE:
            return self.size_bytes
        return math.prod(self.shape) * int(dtype.itemsize)


def read_header(file: str, file_bytes: int, read: Callable[[int, int], bytes]) -> dict[str, TensorPlace]:
    """Read and check the header of a safetensors file.

    Args:
        file: Name of the file, for messages.
        file_bytes: Size of the whole file.
        read: ``read(begin, size_bytes)`` returns those bytes of the file, or fewer where it ends.

    Raises:
        DamagedCheckpoint: The header is malformed, or does not fit the size of the file.
    """
    if file_bytes < _PREFIX.size:
        raise _damaged(file, f"has {file_bytes} bytes, too few for a header")
    prefix = read(0, _PREFIX.size)
    if len(prefix) != _PREFIX.size:
        raise _damaged(file, "ends inside its header")
    (header_bytes,) = _PREFIX.unpack(prefix)
    buffer_begin = _PREFIX.size + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or buffer_begin > file_bytes:
        raise _damaged(file, f"announces a header of {header_bytes} bytes in a file of {file_bytes}")
    text = read(_PREFIX.size, header_bytes)
    if len(text) != header_bytes:
        raise _damaged(file, "ends inside its header")
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise _damaged(file, "has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, "has a header that is not a JSON object")
    places = {
        name: _parse_place(file, name, entry, buffer_begin) for name, entry in header.items() if name != "__metadata__"
    }
    _check_tiling(file, places, buffer_begin, file_bytes)
    return places


def read_tensor(
    stream: BinaryIO, place: TensorPlace, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Read one tensor into memory of its own, cast it and move it.

    Reads rather than maps: pages of a mapped file stay resident beside the copy, and a file that shrinks under a map
    kills the process. At most this one tensor is held twice.

    Args:
        stream: The file, opened unbuffered in binary mode.
        place: The tensor's place, from ``read_header`` of the same file.
        dtype: Wanted dtype of 16, 32 and 64 bit floats (None: as stored); other tensors keep theirs.
        device: Where the tensor shall live.

    Raises:
        DamagedCheckpoint: The file has become shorter than its header says.
    """
    raw = torch.empty(place.size_bytes, dtype=torch.uint8)
    view = memoryview(raw.numpy())
    stream.seek(place.begin)
    filled = 0
    while filled < place.size_bytes:
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise _damaged(str(stream.name), "has become shorter while it was read")
        filled += count
    tensor = (
        raw.view(place.dtype).reshape(place.shape) if place.size_bytes else torch.empty(place.shape, dtype=place.dtype)
    )
    return tensor.to(device=device, dtype=dtype if dtype is not None and place.dtype in _CASTABLE else place.dtype)


def _parse_place(file: str, name: str, entry: Any, buffer_begin: int) -> TensorPlace:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"describes the tensor {name!r} with other fields than dtype, shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _damaged(file, f"gives the tensor {name!r} the dtype {entry['dtype']!r}, which is not known here")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(file, f"gives the tensor {name!r} an impossible shape or place")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _damaged(file, f"gives the tensor {name!r} {end - begin} bytes, which its shape {shape} does not fill")
    return TensorPlace(dtype, tuple(shape), buffer_begin + begin, end - begin)


def _check_tiling(file: str, places: Mapping[str, TensorPlace], buffer_begin: int, file_bytes: int) -> None:
    position = buffer_begin
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].size_bytes)):
        if place.begin != position:
            raise _damaged(file, f"places the tensor {name!r} over another one, or leaves a hole before it")
        position += place.size_bytes
    if position != file_bytes:
        raise _damaged(file, f"has {file_bytes} bytes where its header describes {position}")


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _damaged(file: str, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"the weight file {file} {what}: delete the file and fetch or copy it again")
