"""What a stage computes: sessions' steps in, output bytes out. Runs in the compute thread; ``drop`` anywhere.

It knows no stream and no admission. Which steps a session may be given is decided by ``session``; which of them run
together by ``batching``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

import torch

from node.errors import UnavailableError
from node.model.arena import Buffers
from node.model.cache import SpanCache
from node.model.ragged import Part
from node.model.span import Span
from node.model.tensors import from_payload, to_payload
from node.serve.end_work import EndWork
from node.serve.prefixes import PrefixChain
from node.serve.session import Compute

logger = logging.getLogger(__name__)

Output: TypeAlias = tuple[memoryview, tuple[int, ...]]
"""A step's output bytes and its shape ``[rows, tokens, hidden]``; where an end answers, logits or ids."""


class Computation:
    """One session at one stage: its part of the span, and its cache.

    Args:
        span: the blocks that the session runs.
        cache: made by ``span.new_cache``.
        prefixes: finds what other sessions have computed of the same text; None: every step is run.
        ends: what is done beyond the blocks; None: nothing.
    """

    def __init__(
        self,
        span: Span,
        cache: SpanCache,
        prefixes: PrefixChain | None = None,
        ends: EndWork | None = None,
    ) -> None:
        self.span = span
        self.ends = ends
        self.prefixes = prefixes
        self.padding: torch.Tensor | None = None
        self._cache: SpanCache | None = cache

    @property
    def cache(self) -> SpanCache:
        """The session's keys and values.

        Raises:
            UnavailableError: the session has ended.
        """
        if self._cache is None:
            raise UnavailableError("The session has ended.")
        return self._cache

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._cache.length if self._cache is not None else 0

    def begin(self, order: Compute, into: Buffers | None) -> None:
        """Make the history what the step continues.

        Args:
            order: the step, and what changes before it.
            into: buffers for another number of rows than before; None: as many.
        """
        cache = self.cache
        if order.crop is not None:
            cache.crop_to(order.crop)
        if order.rows is not None:
            cache.select_rows(torch.tensor(order.rows), into)
        if order.left_padding and (self.padding is None or order.rows is not None):
            self.padding = torch.tensor(order.left_padding, device=self.span.device)
        if self.prefixes is not None:
            self.prefixes.begin(order)

    def drop(self) -> None:
        """Let go of the cache; a step that runs right now ends first."""
        self._cache = None


class SpanSteps:
    """Runs steps of one part of a span together: the group of its jobs."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def run(self, shares: Sequence[tuple[StepJob, int]]) -> list[Exception | None]:
        """Run so many positions of each step; a step that fails does not take the others with it."""
        if len(shares) > 1 and self._span.can_batch:
            try:
                outputs = self._forward(shares)
            except Exception:
                logger.info("A forward of %d steps failed; each is run alone", len(shares), exc_info=True)
            else:
                return [_take(job, output) for (job, _), output in zip(shares, outputs, strict=True)]
        return [self._run_alone(share) for share in shares]

    def _run_alone(self, share: tuple[StepJob, int]) -> Exception | None:
        try:
            (output,) = self._forward([share])
        except Exception as error:  # noqa: BLE001 - handed to the engine as a value
            return error
        return _take(share[0], output)

    def _forward(self, shares: Sequence[tuple[StepJob, int]]) -> list[torch.Tensor]:
        outputs: list[torch.Tensor] = self._span.forward_many([job.part(positions) for job, positions in shares])
        return outputs


def _take(job: StepJob, output: torch.Tensor) -> Exception | None:
    """Hand a forward's output over. The histories have grown by it: whatever fails now, nobody's step runs again."""
    try:
        job.take(output)
    except Exception as error:  # noqa: BLE001 - handed to the engine as a value
        return error
    return None


class StepJob:
    """One step of one session, as the engine runs it.

    Args:
        group: runs steps of the session's part of the span.
        computation: the session.
        order: the step, and what changes before it.
        client: peer id of the session's client.
        into: buffers for another number of rows than before; None: as many.
        priority: higher goes first where not all can.
    """

    def __init__(
        self, group: SpanSteps, computation: Computation, order: Compute, client: str, into: Buffers | None = None,
        priority: int = 0,
    ) -> None:  # fmt: skip
        self.group = group
        self.session = order.step.session
        self.client = client
        self.rows = order.step.shape[0]
        self.priority = priority
        self._computation = computation
        self._order = order
        self._into = into
        self._hidden: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []
        self._done = 0
        """Positions that have been run."""
        self.known_positions = 0
        """Positions of them that were taken from what other sessions have computed."""

    @property
    def positions_left(self) -> int:
        """Positions per row that are still to be run."""
        return self._order.step.shape[1] - self._done

    def prepare(self) -> None:
        """Decode the step when it comes, and take what is known of a prefix while it is long.

        Raises:
            UnavailableError: the session has ended.
        """
        computation = self._computation
        cache = computation.cache
        if self._hidden is None:
            computation.begin(self._order, self._into)
            self._hidden = self._enter()
        if computation.prefixes is not None:
            self._reuse(computation.prefixes, cache)

    def _enter(self) -> torch.Tensor:
        step, span, ends = self._order.step, self._computation.span, self._computation.ends
        if ends is not None and ends.embeds:
            return ends.embed(self._order)
        return from_payload(step.payload, step.shape, step.codec, dtype=span.dtype, device=span.device)

    def _reuse(self, prefixes: PrefixChain, cache: SpanCache) -> None:
        assert self._hidden is not None
        for output in prefixes.reuse(self._hidden[:, self._done :], cache):
            self._outputs.append(output)
            self._done += output.shape[1]
            self.known_positions += output.shape[1]

    def part(self, positions: int) -> Part:
        """Return the next ``positions`` as a part of a forward pass."""
        assert self._hidden is not None
        hidden = self._hidden
        if positions != hidden.shape[1]:
            hidden = hidden[:, self._done : self._done + positions]
        return Part(hidden, self._computation.cache, self._computation.padding)

    def take(self, output: torch.Tensor) -> None:
        """Take what the forward pass gave for the last part, ``[rows, positions, hidden]``."""
        computation = self._computation
        if computation.prefixes is not None:
            assert self._hidden is not None
            hidden = self._hidden[:, self._done : self._done + output.shape[1]]
            is_last = output.shape[1] == self.positions_left
            computation.prefixes.keep(hidden, output, computation.cache, is_last=is_last)
        self._outputs.append(output)
        self._done += output.shape[1]

    def result(self) -> Output:
        """Return the whole step's output."""
        output = self._outputs[0] if len(self._outputs) == 1 else torch.cat(self._outputs, dim=1)
        step, ends = self._order.step, self._computation.ends
        if ends is not None and ends.answers:
            return ends.answer(step, output)
        return to_payload(output, ends.codec if ends is not None else step.codec), tuple(output.shape)
