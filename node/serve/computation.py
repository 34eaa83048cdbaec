"""What a stage computes in one session: steps in, output bytes out. Runs in the compute thread; ``drop`` anywhere.

It knows no stream and no budget. Which steps it may be given is decided by ``session``.
"""

from __future__ import annotations

import torch

from node.errors import UnavailableError
from node.model.cache import SpanCache
from node.model.span import Span
from node.model.tensors import from_payload, to_payload
from node.serve.session import Compute


class Computation:
    """One session at one stage: its part of the span, and its cache."""

    def __init__(self, span: Span, max_length: int) -> None:
        self._span = span
        self._cache: SpanCache | None = span.new_cache(max_length)
        self._padding: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._cache.length if self._cache is not None else 0

    def compute(self, order: Compute) -> tuple[memoryview, tuple[int, ...]]:
        """Run one step; return the output's bytes and its shape ``[rows, tokens, hidden]``.

        Raises:
            UnavailableError: the session has ended.
        """
        step, span, cache = order.step, self._span, self._cache
        if cache is None:
            raise UnavailableError("The session has ended.")
        if order.crop is not None:
            cache.crop_to(order.crop)
        if order.rows is not None:
            cache.select_rows(torch.tensor(order.rows))
        if order.left_padding and (self._padding is None or order.rows is not None):
            self._padding = torch.tensor(order.left_padding, device=span.device)
        hidden = from_payload(step.payload, step.shape, step.codec, dtype=span.dtype, device=span.device)
        output = span.forward(hidden, cache, self._padding)
        return to_payload(output, step.codec), tuple(output.shape)

    def drop(self) -> None:
        """Give the cache back, whoever still holds this object; a step that runs right now ends first."""
        self._cache = None
