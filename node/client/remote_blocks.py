"""The one layer of a client's model: it sends hidden states along the route instead of computing them.

Runs in the caller's thread. Which session a call belongs to is told by the model just before its forward pass, per
thread, because transformers' layers are not handed the 2-D attention mask that tells the padding.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import nn

from node.errors import LocalError


class StepRunner(Protocol):
    """What a forward pass is sent to; ``remote_session.RemoteCache`` is one."""

    def step(self, hidden: torch.Tensor, left_padding: tuple[int, ...]) -> torch.Tensor:
        """Run ``hidden`` (``[batch, seq, hidden]``) through the blocks."""


class Echo:
    """Hands hidden states through; used to probe a model without a network."""

    def step(self, hidden: torch.Tensor, left_padding: tuple[int, ...]) -> torch.Tensor:
        """Return ``hidden``."""
        del left_padding
        return hidden


class RemoteBlocks(nn.Module):
    """Stands where the decoder layers were."""

    attention_type = block_type = "full_attention"
    """Some families ask a layer which of their masks it wants; the answer does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.returns_tuple = False
        """Whether the family's layers return ``(hidden, attention)`` instead of ``hidden``."""
        self._call = threading.local()

    def aim(self, runner: StepRunner, left_padding: tuple[int, ...]) -> None:
        """Say where the next forward pass of this thread goes, and only that one."""
        self._call.target = (runner, left_padding)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Send ``hidden_states`` (``[batch, seq, hidden]``) along the route and return what comes back."""
        target = getattr(self._call, "target", None)
        if target is None:
            raise LocalError("Call the model itself, not its inner modules: they do not know the session.")
        runner, left_padding = target
        self._call.target = None  # A session ends with the last reference to its cache; this is none of them.
        hidden: torch.Tensor = runner.step(hidden_states, left_padding)
        return (hidden, None) if self.returns_tuple else hidden
