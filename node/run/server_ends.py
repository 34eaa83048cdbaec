"""Which ends of a model a server offers to clients without weights, and how it gets them.

A server whose span holds the first block embeds token ids; one whose span holds the last block computes logits.
Loading takes seconds: call it in ``asyncio.to_thread``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dht.records import EMBEDS, HEADS
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import EndParameters, find_end_parameters
from node.model.ends import Ends, build_ends


@dataclass(frozen=True)
class EndPlan:
    """The ends of one model, not loaded yet."""

    checkpoint: Checkpoint
    parameters: EndParameters
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> EndPlan:
        """Find out what the ends of a model are made of; reads no weight."""
        return cls(checkpoint, find_end_parameters(checkpoint.config), dtype, device)

    def num_bytes(self, span: tuple[int, int] | None) -> int:
        """Return the memory of the ends that ``span`` touches; None: of both, because it may touch both."""
        embeds, heads = self._touched(span)
        if not (embeds or heads):
            return 0
        wanted = self.parameters.of(embeds=embeds, heads=heads)
        return self.checkpoint.client_bytes(self.dtype, parameters=wanted)

    def load(self, span: tuple[int, int]) -> Ends | None:
        """Load the ends that ``span`` touches; None where it touches none.

        Raises:
            UnsupportedFamily: the family's ends cannot be had on a server.
            DamagedCheckpoint: a weight file is missing or damaged.
        """
        embeds, heads = self._touched(span)
        if not (embeds or heads):
            return None
        wanted = self.parameters.of(embeds=embeds, heads=heads)
        tensors = self.checkpoint.load_client(dtype=self.dtype, device=self.device, parameters=wanted)
        return build_ends(
            self.checkpoint.config,
            tensors,
            self.parameters,
            embeds=embeds,
            heads=heads,
            dtype=self.dtype,
            device=self.device,
        )

    def _touched(self, span: tuple[int, int] | None) -> tuple[bool, bool]:
        if span is None:
            return True, True
        return span[0] == 0, span[1] == self.checkpoint.num_blocks


def announced(ends: Ends | None) -> int:
    """Return the announcement's field for what is offered."""
    if ends is None:
        return 0
    return (EMBEDS if ends.embeds else 0) | (HEADS if ends.heads else 0)


def in_words(ends: Ends | None) -> str:
    """Return what is offered, for people; empty for nothing."""
    if ends is None:
        return ""
    offered = " and ".join(word for word, has in (("embeds ids", ends.embeds), ("scores tokens", ends.heads)) if has)
    return f"Clients without weights are served too: this server {offered} ({ends.weight_bytes / 2**20:.1f} MiB)."
