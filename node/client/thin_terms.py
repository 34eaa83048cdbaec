"""What a client without weights asks of the ends of a route, and what the answer to a step must look like. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from node.wire import IDS, LOGITS, Result, Sampling, Step


@dataclass(frozen=True, slots=True)
class ThinTerms:
    """The first stage embeds token ids; the last one answers with logits, or with tokens that it samples."""

    top: int
    """How many of the largest logits of a position; 0 where the last stage samples."""
    sampling: Sampling | None = None
    """How the last stage samples; None: it sends logits."""

    def is_answer(self, result: Result, step: Step) -> bool:
        """Say whether ``result`` has the form of an answer to ``step``; its numbers may still be anything."""
        rows, positions, width = result.shape
        codec, widest = (LOGITS, self.top) if self.sampling is None else (IDS, 1)
        # A vocabulary may be smaller than ``top``.
        return result.codec == codec and (rows, positions) == (step.shape[0], step.logits_to_keep) and width <= widest
