"""How far a span's output is from the one that it should be, and 128 bytes that stand for a chunk of it.

A span adds to what enters it. Compared are these increments, not the outputs: so a server that returns its input is as
wrong as one can be, an error of 1, and not nearly right. Channels are divided by a scale of their own first, because a
few of them are larger than all others together:

    error of a position = |(output - reference) / scale| / |(reference - input) / scale|

Two replicas that hold no common tensor compare fingerprints: a random projection of a chunk's scaled increment, whose
seed names the chunk (Johnson and Lindenstrauss; DiFR, arXiv 2511.20621). Pure, on tensors of any device. Does not know
what error is honest; ``node.check`` does. Runs in the compute thread.
"""

from __future__ import annotations

import hashlib
import math
import struct

import torch

NUM_PROJECTIONS = 64
FINGERPRINT_BYTES = 2 * NUM_PROJECTIONS
"""Of one chunk: each projection as a little-endian float16."""
RELATIVE_ERROR = 1 / math.sqrt(2 * NUM_PROJECTIONS)
"""Standard deviation of a distance between fingerprints, as a part of the true distance: 9 %."""

_LARGEST = float(torch.finfo(torch.float16).max)
_FORMAT = struct.Struct(f"<{NUM_PROJECTIONS}e")


def increment_errors(
    inputs: torch.Tensor, outputs: torch.Tensor, reference: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return the scaled error of the increment at every position.

    Args:
        inputs: ``[positions, hidden]`` what entered the span.
        outputs: ``[positions, hidden]`` what the server says came out.
        reference: ``[positions, hidden]`` what should have come out.
        scales: ``[hidden]`` of each channel, all above zero.

    Returns:
        ``[positions]`` in float32, on the device of ``inputs``: 0 where equal, 1 for the input itself, infinity where
        the output is no number or where an increment of nothing is not met. NaN only where the reference is no number.
    """
    weights = 1 / scales.double()
    expected = torch.linalg.vector_norm((reference.double() - inputs.double()) * weights, dim=-1)
    distance = torch.linalg.vector_norm((outputs.double() - reference.double()) * weights, dim=-1)
    errors = torch.where(distance == 0, torch.zeros_like(distance), distance / expected)
    lost = ~torch.isfinite(outputs).all(dim=-1)
    errors = torch.where(lost, torch.full_like(errors, math.inf), errors)
    unknown = ~torch.isfinite(expected)
    return torch.where(unknown, torch.full_like(errors, math.nan), errors).float()


def fingerprint(inputs: torch.Tensor, outputs: torch.Tensor, scales: torch.Tensor, session: bytes, index: int) -> bytes:
    """Return the fingerprint of a chunk: 64 random projections of its scaled increment.

    Args:
        inputs: ``[positions, hidden]`` what entered the span.
        outputs: ``[positions, hidden]`` what came out.
        scales: ``[hidden]`` of each channel, all above zero.
        session: of the chunk; with ``index`` it is the seed, which nobody knows before the session is open.
        index: the chunk's number.
    """
    increments = ((outputs.double() - inputs.double()) / scales.double()).cpu()
    positions, hidden = increments.shape
    seed = hashlib.sha256(session + index.to_bytes(4, "big")).digest()
    sums = torch.zeros(NUM_PROJECTIONS, dtype=torch.float64)
    for position in range(positions):
        sums += _signs(seed, position, hidden) @ increments[position]
    values = (sums / math.sqrt(NUM_PROJECTIONS)).nan_to_num(nan=_LARGEST).clamp(-_LARGEST, _LARGEST)
    return _FORMAT.pack(*values.half().tolist())


def fingerprint_distance(first: bytes, second: bytes) -> float:
    """Return how far two chunks' increments are apart, as a part of the first one's length.

    It estimates |a - b| / |a| over the chunk within 9 % (one standard deviation) of its true value, and cannot tell
    distances below the rounding of float16, about 3e-4, from none.

    Raises:
        ValueError: one of them is no fingerprint.
    """
    if len(first) != FINGERPRINT_BYTES or len(second) != FINGERPRINT_BYTES:
        raise ValueError(f"A fingerprint has {FINGERPRINT_BYTES} bytes, not {len(first)} and {len(second)}.")
    mine, its = _FORMAT.unpack(first), _FORMAT.unpack(second)
    length, distance = math.hypot(*mine), math.dist(mine, its)
    if not math.isfinite(distance):
        return math.inf
    return distance / length if length else (math.inf if distance else 0.0)


def _signs(seed: bytes, position: int, hidden: int) -> torch.Tensor:
    """Return ``[NUM_PROJECTIONS, hidden]`` of +1 and -1, the same on every machine: bits of SHAKE-256."""
    num_bytes = NUM_PROJECTIONS * -(-hidden // 8)
    stream = bytearray(hashlib.shake_256(seed + position.to_bytes(4, "big")).digest(num_bytes))
    octets = torch.frombuffer(stream, dtype=torch.uint8).reshape(NUM_PROJECTIONS, -1, 1)
    bits = (octets >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(NUM_PROJECTIONS, -1)[:, :hidden].double() * 2 - 1
