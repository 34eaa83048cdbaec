"""What a stage does beyond its blocks for a client without weights: embed token ids, answer with logits or samples.

One object per session, used by the compute thread. What a client may ask for is decided by ``session`` and ``handler``.
"""

from __future__ import annotations

import torch

from node.model.ends import Ends
from node.model.sampling import Sampling, choose, top_logits
from node.model.tokens import ids_from_payload, ids_to_payload, logits_to_payload
from node.serve.session import Compute
from node.wire import Open, Step

_POSITIONS_AT_ONCE = 64
"""Logits of so many positions are in memory at once: 32 MiB for a vocabulary of 128,000."""


class EndWork:
    """The ends' part of one session; ``opened`` asks for the embedding, for answers, or for both."""

    def __init__(self, ends: Ends, opened: Open) -> None:
        self.embeds = opened.embed
        """Whether steps carry token ids."""
        self.answers = bool(opened.top or opened.sampling)
        """Whether results carry logits or ids."""
        self.codec = opened.codec
        """How hidden states travel in this session; the step's own codec may be that of ids."""
        self._ends = ends
        self._top = opened.top
        self._sampling = Sampling(*opened.sampling) if opened.sampling else None

    def embed(self, order: Compute) -> torch.Tensor:
        """Return what enters the first block for the step's token ids, ``[rows, tokens, hidden]``.

        Raises:
            SessionError: the model has no embedding for an id or a position.
        """
        step = order.step
        ids = ids_from_payload(step.payload, step.shape[:2])
        return self._ends.embed(ids, step.position, order.left_padding)

    def answer(self, step: Step, output: torch.Tensor) -> tuple[memoryview, tuple[int, ...]]:
        """Return the result of a step: bytes and shape ``[rows, positions, ids or logits of each]``.

        Args:
            step: its ``logits_to_keep`` last positions are answered for.
            output: ``[rows, tokens, hidden]``, what the last block gave for it.
        """
        rows, tokens, _ = output.shape
        keep = step.logits_to_keep
        at_once = max(1, _POSITIONS_AT_ONCE // rows)
        ids, values = [], []
        for first in range(tokens - keep, tokens, at_once):
            last = min(first + at_once, tokens)
            logits = self._ends.logits(output[:, first:last])
            if self._sampling is None:
                top, its = top_logits(logits, self._top)
                ids.append(top)
                values.append(its)
            else:
                ids.append(self._choose(logits, step.position + first + 1, self._sampling))
        chosen = torch.cat(ids, dim=1)
        if self._sampling is not None:
            return ids_to_payload(chosen), tuple(chosen.shape)
        return logits_to_payload(chosen, torch.cat(values, dim=1)), tuple(chosen.shape)

    @staticmethod
    def _choose(logits: torch.Tensor, position: int, sampling: Sampling) -> torch.Tensor:
        """Return ids ``[rows, positions, 1]`` for ``logits``; the first stands at ``position`` in its text."""
        drawn = [choose(logits[:, offset], sampling, position + offset) for offset in range(logits.shape[1])]
        return torch.stack(drawn, dim=1).unsqueeze(-1)
