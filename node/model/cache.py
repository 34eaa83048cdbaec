"""Key and value cache of one session over one span; used by the compute thread only.

Unlike transformers' ``DynamicCache`` it writes in place into buffers that grow by doubling, and its length moves only
when a whole step has succeeded, so that a failed step leaves the session as it was. Sliding-window layers keep their
full history, because a session must be able to crop back to any position; the window is applied by the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

_FIRST_CAPACITY = 64
"""Positions allocated for a session's first step at least; doubling from there wastes at most half."""


class SpanCache(Cache):
    """Keys and values of the layers ``[first_layer, first_layer + num_layers)`` for one batch of rows."""

    def __init__(self, first_layer: int, num_layers: int, max_length: int) -> None:
        super().__init__(layers=[])
        self.length = 0
        self._first_layer = first_layer
        self._num_layers = num_layers
        self._max_length = max_length
        self._buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this step's keys and values behind the history and return both with it.

        Args:
            key_states: ``[rows, heads, seq, head_dim]``.
            value_states: ``[rows, heads, seq, value_dim]``.
            layer_idx: the layer's number in the whole model.

        Returns:
            Views of shape ``[rows, heads, length + seq, dim]``.
        """
        total = self.length + key_states.shape[2]
        keys, values = self._reserve(layer_idx - self._first_layer, total, key_states, value_states)
        keys[:, :, self.length : total] = key_states
        values[:, :, self.length : total] = value_states
        return keys[:, :, :total], values[:, :, :total]

    def _reserve(
        self, index: int, total: int, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held = self._buffers.get(index)
        if held is not None and held[0].shape[2] >= total:
            return held
        capacity = max(_FIRST_CAPACITY, total, 2 * held[0].shape[2] if held else 0)
        capacity = max(total, min(capacity, self._max_length))
        grown = []
        for states, old in zip((key_states, value_states), held or (None, None), strict=True):
            rows, heads, _, dim = states.shape
            new = states.new_empty(rows, heads, capacity, dim)
            if old is not None:
                new[:, :, : self.length] = old[:, :, : self.length]
            grown.append(new)
        self._buffers[index] = (grown[0], grown[1])
        return self._buffers[index]

    def advance(self, num_tokens: int) -> None:
        """Make the step just written part of the history."""
        self.length += num_tokens

    def crop_to(self, length: int) -> None:
        """Forget everything from position ``length`` on."""
        self.length = min(self.length, length)

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep ``rows`` (indices, repetition allowed) of the batch, in that order."""
        for index, (keys, values) in self._buffers.items():
            at = rows.to(keys.device)
            self._buffers[index] = (keys.index_select(0, at), values.index_select(0, at))

    @property
    def num_bytes(self) -> int:
        """Bytes of the allocated buffers."""
        return sum(part.nbytes for pair in self._buffers.values() for part in pair)

    # What transformers' masks and layers ask of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the history, the same for every layer."""
        del layer_idx
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys a query of ``query_length`` sees, and the offset of the first."""
        del layer_idx
        return self.length + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: the bound is the session's, not a layer's."""
        del layer_idx
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """No layer drops old positions."""
        return [False] * self._num_layers

    @property
    def is_compileable(self) -> bool:
        """Buffers grow, so transformers must not compile around them."""
        return False

    def __len__(self) -> int:
        return self._num_layers
