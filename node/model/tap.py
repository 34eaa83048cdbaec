"""A stand-in for a model's blocks that shows what reaches them, and lets something else come out of them.

Whoever runs the model looks at ``seen`` and sets ``reply``. Runs where the model runs; knows nothing of sessions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from node.errors import UnsupportedFamily


class Tap(nn.Module):
    """One layer in the place of all: keeps what it is given, and returns the reply, or what it was given."""

    attention_type = block_type = "full_attention"
    """Some families ask a layer which of their masks it wants; the answer does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.returns_tuple = False
        """Whether the family's layers return ``(hidden, attention)`` instead of ``hidden``; see ``learn_output_of``."""
        self.seen: torch.Tensor | None = None
        """What the last call was given, ``[batch, seq, hidden]``."""
        self.reply: torch.Tensor | None = None
        """What to return, of the same shape; None: what is given."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | tuple[torch.Tensor, None]:
        """Keep ``hidden_states`` and return the reply."""
        self.seen = hidden_states
        hidden = hidden_states if self.reply is None else self.reply
        return (hidden, None) if self.returns_tuple else hidden

    @torch.inference_mode()
    def learn_output_of(self, model: Any) -> None:
        """Find out whether the layers of ``model``, whose stand-in this is, return tuples; the meta device will do.

        A family that expects a tuple takes the first row of a tensor instead, which shows in the shape, or fails to
        unpack it.

        Raises:
            UnsupportedFamily: the shape that comes out is explained by neither.
        """
        rows, tokens, hidden_size = 3, 2, model.config.hidden_size
        hidden = torch.zeros((rows, tokens, hidden_size), device=model.device, dtype=model.dtype)
        try:
            output = model.base_model(inputs_embeds=hidden, past_key_values=DynamicCache(), use_cache=False)
        except ValueError:  # Three rows were unpacked as the two parts of a tuple.
            self.returns_tuple = True
            return
        finally:
            self.seen = None
        shape = tuple(output.last_hidden_state.shape)
        if shape != (rows, tokens, hidden_size) and rows in shape:
            raise UnsupportedFamily(
                f"The family {model.config.model_type} hands hidden states between its layers in a way that cannot be "
                "split; choose a model of a family that `efedllm doctor` lists."
            )
        self.returns_tuple = rows not in shape
