"""What error every way to compute a span has, on one set of texts: figures for calibrations and for tables.

All blocks of the model are in memory once in float32, as the reference, and once as each server holds them. What enters
a block is what an honest float32 model gives there, as the wire carries it, so that reference and server start from the
same bytes. Runs in the compute thread, for minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from node.check.check import WINDOW, nearest_arrival, through_codec
from node.check.final_token import logit_errors
from node.check.honest import Way, together
from node.model.ends import Ends
from node.model.fingerprint import increment_errors
from node.model.sampling import top_logits
from node.model.span import Span

Blocks: TypeAlias = tuple[int, int]

TOP = 64
"""Logits of a position that last stages are measured by: as many as a client without weights asks for."""


@dataclass(frozen=True)
class Survey:
    """Texts on their way through a model, and the reference that they are measured by."""

    reference: Span
    """All blocks, in float32 on the declared weights."""
    entering: Sequence[torch.Tensor]
    """``[texts, positions, hidden]`` float32 before each block, and behind the last one."""

    def scene(self, blocks: Blocks, codec: str, scales: torch.Tensor) -> Scene:
        """Return what servers of ``blocks`` are given in ``codec``, and what they should send."""
        given = through_codec(self.entering[blocks[0]], codec)
        expected = together(self.reference.view(*blocks), given)
        return Scene(blocks, codec, given, expected, scales)


@dataclass(frozen=True)
class Scene:
    """One span, one codec: what goes in, and what should come out."""

    blocks: Blocks
    codec: str
    given: torch.Tensor
    """``[texts, positions, hidden]`` float32 as it arrives."""
    expected: torch.Tensor
    """Likewise, what should come out of the span."""
    scales: torch.Tensor
    """``[hidden]`` of each channel."""

    def run(self, server: Span, way: Way) -> torch.Tensor:
        """Return the errors of ``server`` (all blocks, or more than these) going one way, ``[chunks, 64]``."""
        return self.errors(self.outputs(server, way))

    def outputs(self, server: Span, way: Way) -> torch.Tensor:
        """Return what ``server`` gives, as ``run``; of all positions or of the texts' last ones."""
        span = server.view(*self.blocks)
        return way(span, self.given.to(device=span.device, dtype=span.dtype))

    def errors(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the errors of ``outputs``, of all positions or of the texts' last ones, ``[chunks, 64]``."""
        arrived = through_codec(outputs, self.codec).to(self.given.device)
        first = self.given.shape[1] - arrived.shape[1]
        expected = nearest_arrival(self.expected[:, first:], arrived, self.codec)
        rows = zip(self.given[:, first:], arrived, expected, strict=True)
        errors = torch.stack([increment_errors(given, sent, due, self.scales) for given, sent, due in rows])
        return errors.reshape(-1, WINDOW)

    def answer_errors(self, outputs: torch.Tensor, ends: Ends, exact: Ends) -> torch.Tensor:
        """Return the errors of the logits that a server answers with, ``[chunks, 64]``.

        Args:
            outputs: of a span up to the last block, as for ``errors``; they have not gone through the codec.
            ends: the server's, with the head.
            exact: the head that it is checked by.
        """
        first = self.given.shape[1] - outputs.shape[1]
        errors = []
        for chunk, due in zip(_chunks(outputs), _chunks(self.expected[:, first:]), strict=True):
            ids, logits = top_logits(ends.logits(chunk)[0], TOP)
            errors.append(logit_errors(exact.logits(due)[0], ids.cpu(), logits.cpu()))
        return torch.stack(errors)


def _chunks(hidden: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the chunks ``[1, 64, hidden]`` of texts, one by one: logits of all of them are large."""
    for text in hidden.split(1):
        yield from text.split(WINDOW, dim=1)


def walk(reference: Span, embedded: torch.Tensor) -> list[torch.Tensor]:
    """Return the hidden states before each block of ``reference`` and behind its last one.

    Args:
        reference: all blocks of a model.
        embedded: ``[texts, positions, hidden]`` what enters the first one, in its dtype.
    """
    hidden = [embedded]
    for block in range(reference.start, reference.end):
        hidden.append(together(reference.view(block, block + 1), hidden[-1]))
    return hidden


def second_moments(entering: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean square of what each block adds to each channel, ``[blocks, hidden]`` float32."""
    added = [(after.double() - before.double()).square() for before, after in itertools.pairwise(entering)]
    return torch.stack([square.flatten(0, 1).mean(dim=0) for square in added]).float().cpu()


def spans_of(num_blocks: int, *, every: bool) -> list[Blocks]:
    """Return the spans that are measured: lengths 1, 2, 4 and so on and the whole model.

    Args:
        num_blocks: of the model.
        every: every span of such a length; else side by side, so that each block is in one of each length.
    """
    lengths = [2**power for power in range(num_blocks.bit_length()) if 2**power < num_blocks]
    spans: list[Blocks] = []
    for length in [*lengths, num_blocks]:
        starts = range(num_blocks - length + 1) if every else [*range(0, num_blocks - length + 1, length)]
        if starts[-1] != num_blocks - length:
            starts = [*starts, num_blocks - length]
        spans += [(start, start + length) for start in starts]
    return spans
