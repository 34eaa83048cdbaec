"""The memory behind all sessions' keys and values: two buffers per layer, allocated once, cut into sessions' slots.

Which slot belongs to whom is decided elsewhere; this gives the tensors of a slot. Used by the compute thread, except
``place``, which only makes views. On a CPU a buffer's memory becomes resident where it is first written, not before.

    one layer's keys     |## session a: [rows, heads, capacity, dim] ##|....|## session b ##|
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
            return torch.empty(num_positions * elements, dtype=dtype, device=device)

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
