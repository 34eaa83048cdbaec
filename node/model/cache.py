"""Key and value cache of one session over one span; used by the compute thread only.

Unlike transformers' ``DynamicCache`` it writes in place into buffers that its maker hands it, and its length moves only
when a whole step has succeeded, so that a failed step leaves the session as it was. Sliding-window layers keep their
full history, because a session must be able to crop back to any position; the window is applied by the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from node.model.arena import Buffers, LayerShape


class SpanCache(Cache):
    """Keys and values of the layers from ``first_layer`` on, one per pair of ``buffers``, for one batch of rows."""

    def __init__(self, first_layer: int, buffers: Buffers) -> None:
        super().__init__(layers=[])
        self.length = 0
        self.buffers = buffers
        """``[rows, heads, capacity, dim]`` keys and values of every layer."""
        self._first_layer = first_layer

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
        first, count = self.length, key_states.shape[2]
        keys, values = self.buffers[layer_idx - self._first_layer]
        # narrow costs half of what an index does, and this runs for every session and layer of every step.
        keys.narrow(2, first, count).copy_(key_states)
        values.narrow(2, first, count).copy_(value_states)
        return keys.narrow(2, 0, first + count), values.narrow(2, 0, first + count)

    def advance(self, num_tokens: int) -> None:
        """Make the step just written part of the history."""
        self.length += num_tokens

    def crop_to(self, length: int) -> None:
        """Forget everything from position ``length`` on."""
        self.length = min(self.length, length)

    def select_rows(self, rows: torch.Tensor, into: Buffers | None = None) -> None:
        """Keep ``rows`` (indices, repetition allowed) of the batch, in that order.

        Args:
            rows: ``[new rows]``.
            into: buffers for another number of rows; None: as many as before.
        """
        for (keys, values), target in zip(self.buffers, into or self.buffers, strict=True):
            at = rows.to(keys.device)
            for old, new in zip((keys, values), target, strict=True):
                new[:, :, : self.length] = old[:, :, : self.length].index_select(0, at)
        self.buffers = into or self.buffers

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
        return [False] * len(self.buffers)

    @property
    def is_compileable(self) -> bool:
        """Slots are of any length, so transformers must not compile around them."""
        return False

    def __len__(self) -> int:
        return len(self.buffers)


class ShapeProbe(Cache):
    """Stands in for a cache for one forward from an empty history, to learn what each layer keeps."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._shapes: dict[int, LayerShape] = {}

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """What every layer keeps of one position, in order."""
        return tuple(shape for _, shape in sorted(self._shapes.items()))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note the shapes ``[rows, heads, seq, dim]`` and hand both back."""
        self._shapes[layer_idx] = LayerShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: nothing is kept."""
        del layer_idx
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the query's own length and no offset."""
        del layer_idx
        return query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no bound."""
        del layer_idx
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        """No layer drops old positions."""
        return [False] * max(1, len(self._shapes))

    @property
    def is_compileable(self) -> bool:
        """Nothing to compile around."""
        return False

    def __len__(self) -> int:
        return len(self._shapes)
