"""What one session keeps over a span whose layers hold a state; used by the compute thread only.

Linear attention, state-space and short-convolution layers fold the past into tensors of fixed size. transformers'
own cache layers hold them here, beside the keys and values of the attention layers in between. What is folded in
cannot be taken out again: such a session goes forward only. Knows neither sessions nor how a step is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from node.errors import ComputeFailed, SessionError, UnsupportedFamily

_MIN_POSITION_BYTES = 1024
"""What a position is charged at least: a span without attention layers keeps nothing of it, yet must count it."""


@dataclass(frozen=True, slots=True)
class StateSize:
    """What a session keeps over a span for each of its rows."""

    row_bytes: int
    """States, however long the text is."""
    position_bytes: int
    """Keys and values of one position."""

    @property
    def charged_position_bytes(self) -> int:
        """Bytes that one position of one row counts for in a server's memory."""
        return max(self.position_bytes, _MIN_POSITION_BYTES)

    @property
    def row_positions(self) -> int:
        """Positions that the states of one row count for."""
        return -(-self.row_bytes // self.charged_position_bytes)


class StateCache(DynamicCache):
    """States, keys and values of a span's layers for one batch of rows.

    Its layers are those of the whole model, because layers name themselves by their number there; those outside the
    span are never touched and hold nothing.
    """

    layers: list[Any]

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.length = 0
        self.layers = [_without_window(layer) for layer in self.layers]
        self._is_between_steps = True

    def begin(self) -> None:
        """Take note that a step starts to change the states.

        Raises:
            ComputeFailed: the step before failed half way, so that the states belong to no position.
        """
        if not self._is_between_steps:
            raise ComputeFailed("A step of this session failed half way; open a new session.")
        self._is_between_steps = False

    def advance(self, num_tokens: int) -> None:
        """Make the step just computed part of the history."""
        self.length += num_tokens
        self._is_between_steps = True

    def crop_to(self, length: int) -> None:
        """Pass if ``length`` positions forget nothing.

        Raises:
            SessionError: a state cannot be taken back to an earlier position.
        """
        if length < self.length:
            raise SessionError(
                f"This model's layers keep a state, which cannot be taken back from position {self.length} to "
                f"{length}; open a new session and send the text again."
            )

    def select_rows(self, rows: torch.Tensor, into: object = None) -> None:
        """Keep ``rows`` (indices, repetition allowed) of the batch, in that order.

        Args:
            rows: ``[new rows]``.
            into: of no use here: this cache has memory of its own, which becomes as large as the rows need.
        """
        del into
        self.reorder_cache(rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of all states, keys and values."""
        return sum(part.nbytes for layer in self.layers for part in _tensors(layer))

    # What transformers' masks and layers ask of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the history, the same for every layer, also for those that count nothing."""
        del layer_idx
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys a query of ``query_length`` sees, and the offset of the first."""
        del layer_idx
        return self.length + query_length, 0

    @property
    def is_compileable(self) -> bool:
        """Keys and values grow, so transformers must not compile around them."""
        return False


def _without_window(layer: Any) -> Any:
    """Return a layer that keeps every key in place of one that drops old ones: the mask applies the window."""
    if not isinstance(layer, DynamicSlidingWindowLayer):
        return layer
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        raise UnsupportedFamily(f"Layers with a state and a sliding window ({layer!r}) cannot be served in spans.")
    return DynamicLayer()


def _tensors(layer: Any) -> Iterator[torch.Tensor]:
    """Yield what a cache layer holds: attention layers have keys and values, layers with a state have states."""
    held = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        held += [*layer.conv_states.values(), *layer.recurrent_states.values()]
    yield from (part for part in held if part is not None)
