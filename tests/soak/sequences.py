"""Fixed sequences of hidden states with what the whole model makes of them, so that any step of any session can be
checked: the output at a position depends on the positions up to it and on nothing else.
"""

from dataclasses import dataclass
from typing import Any

import numpy
import torch

TOLERANCE = 1e-3
"""By how much an output may differ from the reference, as a share of the largest one: batched and chunked steps agree
to rounding. Another session's keys change outputs by a large part of themselves."""


@dataclass(frozen=True)
class Sequence:
    """Hidden states for the first block, and transformers' outputs of the last one."""

    hidden: numpy.ndarray
    """``[positions, hidden]``"""
    outputs: numpy.ndarray
    """``[positions, hidden]``"""

    def payload(self, position: int, rows: int, num_tokens: int) -> bytes:
        """Return the float32 bytes of ``[rows, num_tokens, hidden]`` from ``position`` on; all rows are the same."""
        return numpy.repeat(self.hidden[None, position : position + num_tokens], rows, axis=0).tobytes()

    def agrees(self, payload: Any, position: int, shape: tuple[int, ...]) -> bool:
        """Say whether a result's bytes are what transformers computes at these positions."""
        got = numpy.frombuffer(payload, numpy.float32).reshape(shape)
        expected = self.outputs[None, position : position + shape[1]]
        return bool(numpy.abs(got - expected).max() <= TOLERANCE * numpy.abs(self.outputs).max())


def make_sequences(model: Any, count: int, num_positions: int) -> list[Sequence]:
    """Draw sequences and run them through all layers of a llama of transformers."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(count, num_positions, model.config.hidden_size, generator=generator)
    outputs: list[torch.Tensor] = []
    with torch.no_grad(), model.model.layers[-1].register_forward_hook(lambda *call: outputs.append(call[2])):
        model.model(inputs_embeds=hidden)
    (computed,) = outputs
    return [Sequence(own.numpy(), theirs.numpy()) for own, theirs in zip(hidden, computed, strict=True)]
