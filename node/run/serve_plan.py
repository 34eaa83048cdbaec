"""What a server decides before it asks the swarm: how it computes, holds its weights and divides its memory.

Asked by ``serve``, which then does it, and by ``doctor``, which says what it would do. Reads headers of weight files
and no weight. Takes seconds where they are on a hub: call it in ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from node.errors import BadBlocks, DoesNotFit
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes, pick_device, pick_dtype
from node.model.quantise import Scheme, check_stored, find_scheme
from node.model.static_decode import MAX_GATHERED_BYTES
from node.run.server_ends import EndPlan
from node.serve.forecast import Fit, judge_fit
from node.serve.placement import MemoryPlan, parse_blocks, plan_memory


@dataclass(frozen=True)
class Wanted:
    """What the user asked for that decides what fits."""

    blocks: str | None = None
    """``START:END``; None: where the swarm needs them."""
    num_blocks: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    max_memory_bytes: int | None = None
    offer_ends: bool = True


@dataclass(frozen=True)
class Weights:
    """How the weights of a model's blocks would be held here."""

    device: torch.device
    dtype: torch.dtype
    """What the span computes in."""
    scheme: Scheme | None
    """How its weights are held in fewer bits; None: as ``dtype`` has them."""
    block_bytes: tuple[int, ...]
    """Of every block of the model, in order."""

    @property
    def held_in(self) -> str:
        """What the weights are held in, as the announcement says it."""
        return self.scheme.name if self.scheme else str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class ServePlan:
    """Everything that is decided before the swarm is asked."""

    checkpoint: Checkpoint
    weights: Weights
    memory: MemoryPlan
    span: tuple[int, int] | None
    """The blocks asked for; None: the swarm decides where the need is."""
    ends: EndPlan | None
    """Embedding and head, for clients without weights; None: not offered."""


def plan_serving(wanted: Wanted, checkpoint: Checkpoint, say: Callable[[str], None]) -> ServePlan:
    """Decide how this machine would serve a model; ``say`` takes a sentence for people.

    Raises:
        BadBlocks: the blocks asked for are not of this model.
        DoesNotFit: they, or not even one, fit.
        UserError: the machine has no such device, or what was asked contradicts itself.
        QuantizerMissing: what quantised weights need is not here.
    """
    span, count = wanted_blocks(wanted, checkpoint.num_blocks)
    device = pick_device(wanted.device)
    check_stored(checkpoint.config, device)
    if wanted.quantize is not None:
        find_scheme(wanted.quantize, checkpoint.config).check_machine(device)
    weights = weigh(wanted, checkpoint, device)
    free, sizes = usable_bytes(wanted, device), list(weights.block_bytes)
    ends = _plan_ends(wanted, checkpoint, weights)
    try:
        memory = plan_memory(free, sizes, count, ends.num_bytes(span) if ends else 0)
    except DoesNotFit:
        memory = plan_memory(free, sizes, count)  # Blocks come first; it raises where they are what does not fit.
        ends = None
        say("Embeddings and head do not fit beside the blocks: clients without weights are not served here.")
    return ServePlan(checkpoint, weights, memory, span, ends)


def fit(wanted: Wanted, checkpoint: Checkpoint, quantize: str | None) -> tuple[Weights, Fit]:
    """Say how the same would fit with weights held otherwise, whether or not this machine can compute with them.

    Raises:
        UserError: the model's weights cannot be held so, or not with what else was asked.
    """
    span, count = wanted_blocks(wanted, checkpoint.num_blocks)
    device = pick_device(wanted.device)
    weights = weigh(replace(wanted, quantize=quantize), checkpoint, device)
    ends = _plan_ends(wanted, checkpoint, weights)
    free, sizes = usable_bytes(wanted, device), list(weights.block_bytes)
    with_ends = judge_fit(free, sizes, count, ends.num_bytes(span) if ends else 0)
    return weights, with_ends if with_ends.plan else judge_fit(free, sizes, count)


def wanted_blocks(wanted: Wanted, num_blocks: int) -> tuple[tuple[int, int] | None, int | None]:
    """Return the span asked for, and how many blocks that is; None where the user leaves it open.

    Raises:
        BadBlocks: they are not of a model of ``num_blocks``.
    """
    span = parse_blocks(wanted.blocks, num_blocks) if wanted.blocks is not None else None
    count = span[1] - span[0] if span else wanted.num_blocks
    if count is not None and not 1 <= count <= num_blocks:
        raise BadBlocks(f"--num-blocks {count} is not possible; the model has {num_blocks} blocks.")
    return span, count


def usable_bytes(wanted: Wanted, device: torch.device) -> int:
    """Return the memory of ``device`` that a server may take."""
    free = free_bytes(device)
    if device.type == "cuda":
        free -= MAX_GATHERED_BYTES  # Decoding in static shapes copies histories while it attends.
    return free if wanted.max_memory_bytes is None else min(free, wanted.max_memory_bytes)


def weigh(wanted: Wanted, checkpoint: Checkpoint, device: torch.device) -> Weights:
    """Say how the weights would be held, and what each block then takes.

    Raises:
        UserError: they cannot be held so; ``UnsupportedFamily`` where the scheme takes none of them.
    """
    dtype = pick_dtype(wanted.dtype, getattr(checkpoint.config, "dtype", None), device)
    if wanted.quantize is None:
        sizes = [checkpoint.span_bytes(block, block + 1, dtype) for block in range(checkpoint.num_blocks)]
        return Weights(device, dtype, None, tuple(sizes))
    scheme = find_scheme(wanted.quantize, checkpoint.config)
    dtype = scheme.compute_dtype(wanted.dtype, dtype)
    return Weights(device, dtype, scheme, tuple(scheme.block_bytes(checkpoint.config, dtype)))


def _plan_ends(wanted: Wanted, checkpoint: Checkpoint, weights: Weights) -> EndPlan | None:
    if not wanted.offer_ends or getattr(checkpoint.config, "quantization_config", None) is not None:
        return None
    return EndPlan.of(checkpoint, weights.dtype, weights.device)
