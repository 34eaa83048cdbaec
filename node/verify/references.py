"""What a judge computes with: one span and the ends of a model, loaded when they are needed, within its memory.

    a span as declared, in float32      one at a time: the next one takes its place
    the embedding, in a server's dtype  kept
    the head, in float32                kept

Runs in the judge's thread; reads files, and fetches them where it has to.
"""

from __future__ import annotations

from functools import cached_property

import torch

from node.check.reference import DTYPES, reference_span
from node.errors import CannotCheck
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes
from node.model.end_parameters import EndParameters, find_end_parameters
from node.model.ends import Ends, build_ends
from node.model.span import Span

_SHARE_OF_FREE = 2
"""Without a bound, a judge takes one part in so many of the memory that is free."""
_CPU = torch.device("cpu")


class References:
    """The references of one model.

    Args:
        checkpoint: the model.
        max_bytes: memory that they, and checks with them, may take; None: half of what is free.
    """

    def __init__(self, checkpoint: Checkpoint, max_bytes: int | None) -> None:
        self._checkpoint = checkpoint
        self._max_bytes = max_bytes
        self._span: tuple[tuple[str, int, int], Span] | None = None
        self._span_bytes = 0
        self._ends: dict[tuple[torch.dtype, bool], Ends] = {}
        """By dtype, and whether it is the entry."""

    @property
    def left_bytes(self) -> int:
        """What may still be taken."""
        if self._max_bytes is None:
            return free_bytes(_CPU) // _SHARE_OF_FREE
        ends_bytes: int = sum(ends.weight_bytes for ends in self._ends.values())
        return self._max_bytes - self._span_bytes - ends_bytes

    def span(self, held_in: str, start: int, end: int) -> Span:
        """Return the blocks as a server should have them that declares weights held in ``held_in``.

        Raises:
            CannotCheck: they do not fit into the memory that is left.
        """
        place = (held_in, start, end)
        if self._span is None or self._span[0] != place:
            self._span, self._span_bytes = None, 0  # There is room for one.
            size_bytes = self._checkpoint.span_bytes(start, end, torch.float32)
            loading_bytes = self._checkpoint.span_bytes(start, end, DTYPES.get(held_in, torch.bfloat16))
            self._check(f"blocks {start}:{end}", size_bytes + loading_bytes)
            self._span = place, reference_span(self._checkpoint, held_in, start, end, _CPU)
            self._span_bytes = size_bytes
        return self._span[1]

    def let_go(self) -> None:
        """Forget the blocks, so that others have their room."""
        self._span, self._span_bytes = None, 0

    def entry(self, dtype: torch.dtype) -> Ends:
        """Return what embeds as a server does that computes in ``dtype``; raises as ``span``."""
        return self._load("the embedding", dtype, is_entry=True)

    def exit(self) -> Ends:
        """Return the head in float32; raises as ``span``."""
        return self._load("the head", torch.float32, is_entry=False)

    def _load(self, what: str, dtype: torch.dtype, *, is_entry: bool) -> Ends:
        if (dtype, is_entry) not in self._ends:
            wanted = self._parameters.of(embeds=is_entry, heads=not is_entry)
            self._check(what, self._checkpoint.client_bytes(dtype, parameters=wanted))
            self._ends[dtype, is_entry] = build_ends(
                self._checkpoint.config,
                self._checkpoint.load_client(dtype=dtype, device=_CPU, parameters=wanted),
                self._parameters,
                embeds=is_entry,
                heads=not is_entry,
                dtype=dtype,
                device=_CPU,
            )
        return self._ends[dtype, is_entry]

    @cached_property
    def _parameters(self) -> EndParameters:
        found: EndParameters = find_end_parameters(self._checkpoint.config)
        return found

    def _check(self, what: str, needed_bytes: int) -> None:
        allowed_bytes = self.left_bytes
        if needed_bytes > allowed_bytes:
            raise CannotCheck(
                f"To load {what} takes {needed_bytes:,} bytes, more than the {allowed_bytes:,} that a judge may take."
            )
