"""The memory behind all sessions' keys and values: two buffers per layer, allocated once, cut into sessions' slots.

Which slot belongs to whom is decided elsewhere; this gives the tensors of a slot. Used by the compute thread, except
``place``, which only makes views. On a CPU a buffer's memory becomes resident where it is first written, not before.

    one layer's keys     |## session a: [rows, heads, capacity, dim] ##|....|## session b ##|0|x|

Behind the last position stand two more that belong to no session: one that is always zero, for whoever reads sessions
of different lengths in one shape, and one that anybody may write and nobody reads, for rows that fill up a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of one position."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        """Elements of keys and values together."""
        return self.heads * (self.key_dim + self.value_dim)


RESERVED = 2
"""Positions behind those of sessions: first the one of zeros, then the one for what nobody reads."""

Buffers: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of every layer of a slot: ``[rows, heads, capacity, dim]`` each, contiguous."""


class KeyValueArena:
    """Keys and values of ``num_positions`` positions in every layer of a span."""

    def __init__(
        self, layers: Sequence[LayerShape], num_positions: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = tuple(layers)
        self.num_positions = num_positions

        def buffer(elements: int) -> torch.Tensor:
            made = torch.empty((num_positions + RESERVED) * elements, dtype=dtype, device=device)
            made[num_positions * elements :].zero_()
            return made

        self._buffers = [
            (buffer(layer.heads * layer.key_dim), buffer(layer.heads * layer.value_dim)) for layer in self.layers
        ]

    def place(self, start: int, rows: int, capacity: int) -> Buffers:
        """Return the tensors of a slot.

        Args:
            start: its first position.
            rows: rows of its session.
            capacity: positions of each row.
        """
        assert start + rows * capacity <= self.num_positions

        def cut(buffer: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
            first, size = start * heads * dim, rows * capacity * heads * dim
            return buffer[first : first + size].view(rows, heads, capacity, dim)

        return [
            (cut(keys, layer.heads, layer.key_dim), cut(values, layer.heads, layer.value_dim))
            for (keys, values), layer in zip(self._buffers, self.layers, strict=True)
        ]


def whole_of(part: torch.Tensor) -> torch.Tensor:
    """Return the buffer of which ``part`` (``[rows, heads, capacity, dim]``) is a slot, as ``[vectors, dim]``.

    Head ``h`` of position ``p`` in row ``r`` of a slot is vector ``heads * (start + r * capacity) + h * capacity + p``.
    """
    dim = part.shape[3]
    num_vectors = part.untyped_storage().nbytes() // (dim * part.element_size())
    return part.as_strided((num_vectors, dim), (dim, 1), 0)


def start_of(part: torch.Tensor) -> int:
    """Return the first position of the slot that ``part`` (``[rows, heads, capacity, dim]``) is."""
    return int(part.storage_offset() // (part.shape[1] * part.shape[3]))
