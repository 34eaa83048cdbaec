"""Honest ways to compute one thing: the variants that a calibration is made from.

What a server does with a session depends on who else is there and on what its client sends. The results are equal but
for rounding, and how much that is, is what a calibration has to know. A variant takes texts and gives what a span makes
of them; which dtype, kernel or device it is done with is the span's. Runs in the compute thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch

from node.check.reference import DTYPES
from node.errors import UserError
from node.model.checkpoint import Checkpoint
from node.model.quantise import SCHEMES
from node.model.ragged import Part
from node.model.span import Span, build_quantised_span, build_span

Way: TypeAlias = Callable[[Span, torch.Tensor], torch.Tensor]
"""Takes ``[texts, positions, hidden]``; gives the outputs of all positions, or of the last ones only."""

CPU = torch.device("cpu")
_ROWS = 8
_STEP = 48
"""Positions of a step of a long prefill: not a multiple of a chunk."""
_DECODED = 64
"""Positions at a text's end that are decoded token by token."""


def alone(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    """Run every text by itself, in one step."""
    return torch.cat([span.forward(text, span.new_cache(text.shape[1])) for text in hidden.split(1)])


def together(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    """Run up to eight texts as the rows of one session."""
    parts = hidden.split(_ROWS)
    return torch.cat([span.forward(part, span.new_cache(part.shape[1], part.shape[0])) for part in parts])


def in_steps(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    """Run every text by itself, in steps of 48 positions."""
    outputs = []
    for text in hidden.split(1):
        cache = span.new_cache(text.shape[1])
        outputs.append(torch.cat([span.forward(step, cache) for step in text.split(_STEP, dim=1)], dim=1))
    return torch.cat(outputs)


def decoded(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    """Run up to eight texts as rows, the last 64 positions token by token; give those alone."""
    outputs = []
    for part in hidden.split(_ROWS):
        rows, positions, _ = part.shape
        cache, first = span.new_cache(positions, rows), max(0, positions - _DECODED)
        if first:
            span.forward(part[:, :first], cache)
        steps = part[:, first:].split(1, dim=1)
        outputs.append(torch.cat([span.forward(step, cache) for step in steps], dim=1))
    return torch.cat(outputs)


def side_by_side(span: Span, hidden: torch.Tensor) -> torch.Tensor:
    """Run up to eight texts as sessions of their own that share forward passes, in steps of different lengths."""
    return torch.cat([_side_by_side(span, part.split(1)) for part in hidden.split(_ROWS)])


def _side_by_side(span: Span, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    caches = [span.new_cache(text.shape[1]) for text in texts]
    outputs: list[list[torch.Tensor]] = [[] for _ in texts]
    while True:
        waiting = [index for index, text in enumerate(texts) if caches[index].length < text.shape[1]]
        if not waiting:
            return torch.cat([torch.cat(steps, dim=1) for steps in outputs])
        parts = []
        for index in waiting:
            done = caches[index].length
            parts.append(Part(texts[index][:, done : done + 24 + 16 * (index % 3)], caches[index]))
        for index, output in zip(waiting, span.forward_many(parts), strict=True):
            outputs[index].append(output)


WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "alone": alone,
        "8 rows": together,
        "steps of 48": in_steps,
        "decoded": decoded,
        "side by side": side_by_side,
    }
)


@dataclass(frozen=True)
class Server:
    """One way to build an honest server that holds its weights as declared."""

    held_in: str
    dtype: torch.dtype
    """What it computes in."""
    device: torch.device
    attention: str | None = None
    """Attention that is asked for by name; None: transformers' choice."""
    packs: bool = True

    @property
    def name(self) -> str:
        """What it is, in words."""
        words = [self.held_in]
        if DTYPES.get(self.held_in) != self.dtype:
            words.append(f"in {str(self.dtype).removeprefix('torch.')}")
        words += [f"{self.attention} attention"] if self.attention else []
        words += [] if self.packs else ["weights as stored"]
        return " ".join([*words, f"on {self.device.type}"])

    def build(self, checkpoint: Checkpoint, start: int, end: int) -> Span:
        """Load the blocks ``[start, end)`` as such a server does."""
        config = checkpoint.config
        if self.held_in in SCHEMES:
            return build_quantised_span(
                config,
                lambda block: checkpoint.load_span(block, block + 1, dtype=self.dtype, device=self.device),
                start,
                end,
                scheme=SCHEMES[self.held_in],
                dtype=self.dtype,
                device=self.device,
            )
        tensors = checkpoint.load_span(start, end, dtype=self.dtype, device=self.device)
        return self.build_with(config, tensors, start, end)

    def build_with(self, config: object, tensors: dict[str, torch.Tensor], start: int, end: int) -> Span:
        """Build the blocks from these ``tensors`` as such a server would, were they the declared ones."""
        config = _with_attention(config, self.attention)
        return build_span(config, tensors, start, end, dtype=self.dtype, device=self.device, packs=self.packs)


def servers_of(held_in: str, devices: Sequence[torch.device]) -> list[Server]:
    """Return the honest servers of weights in ``held_in`` that can be built on ``devices``."""
    servers = []
    for device in devices:
        if held_in in DTYPES:
            dtype = DTYPES[held_in]
            servers += [Server(held_in, dtype, device), Server(held_in, dtype, device, attention="eager")]
            if held_in == "float32" and device.type == "cpu":
                servers.append(Server(held_in, dtype, device, packs=False))
        elif device.type in SCHEMES[held_in].devices:
            only = SCHEMES[held_in].dtype
            dtypes = (torch.float32, torch.bfloat16) if only is None else (only,)
            servers += [Server(held_in, dtype, device) for dtype in dtypes]
    return servers


def devices_here() -> list[torch.device]:
    """Return the devices of this machine that honest servers run on."""
    return [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]


def can_quantise() -> bool:
    """Say whether the library for quantised weights is here."""
    try:
        SCHEMES["int8"].check_machine(CPU)
    except UserError:
        return False
    return True


def _with_attention(config: object, attention: str | None) -> object:
    if attention is None:
        return config
    config = copy.deepcopy(config)
    config._attn_implementation = attention  # type: ignore[attr-defined]  # noqa: SLF001 - how transformers is told
    return config
