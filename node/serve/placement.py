"""How many blocks a server can hold, and which its owner chose. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from node.errors import BadBlocks, DoesNotFit

MIB = 2**20
WORKING_BYTES = 512 * MIB
"""Kept free for activations, buffers and the interpreter."""
DEFAULT_CACHE_SHARE = 0.3
"""Share of the usable memory that sessions' caches get when the span's size is chosen automatically."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a server divides its memory."""

    num_blocks: int
    """Blocks that it can hold."""
    block_bytes: int
    """Weights of the largest block."""
    cache_bytes: int
    """Left for the caches of sessions."""
    usable_bytes: int
    """All of it, working memory already taken off."""
    end_bytes: int = 0
    """Kept for embeddings and head."""

    def __str__(self) -> str:
        weights = self.num_blocks * self.block_bytes
        ends = f"+ {self.end_bytes / MIB:.0f} MiB of embeddings and head " if self.end_bytes else ""
        total = weights + self.end_bytes + self.cache_bytes
        return (
            f"{self.num_blocks} blocks x {self.block_bytes / MIB:.1f} MiB = {weights / MIB:.0f} MiB of weights {ends}"
            f"+ {self.cache_bytes / MIB:.0f} MiB of cache = {total / MIB:.0f} of "
            f"{self.usable_bytes / MIB:.0f} MiB usable"
        )


def plan_memory(free_bytes: int, block_bytes: list[int], num_wanted: int | None, end_bytes: int = 0) -> MemoryPlan:
    """Divide ``free_bytes`` between weights and caches.

    Args:
        free_bytes: memory of the device that may be used.
        block_bytes: weights of every block of the model, in order.
        num_wanted: blocks asked for; None takes as many as leave ``DEFAULT_CACHE_SHARE`` to caches.
        end_bytes: to keep for embeddings and head.

    Raises:
        DoesNotFit: not even the blocks asked for, or one, fit; the message has the numbers.
    """
    largest = max(block_bytes)
    usable = free_bytes - WORKING_BYTES
    for_blocks = usable - end_bytes
    num_blocks = num_wanted or min(len(block_bytes), int(for_blocks * (1 - DEFAULT_CACHE_SHARE)) // largest)
    weights = num_blocks * largest
    if num_blocks < 1 or weights >= for_blocks:
        asked = max(1, num_blocks)
        raise DoesNotFit(
            f"{asked} of the model's {len(block_bytes)} blocks need {asked * largest / MIB:.0f} MiB and "
            f"{WORKING_BYTES / MIB:.0f} MiB to work in, but {free_bytes / MIB:.0f} MiB are free: take fewer blocks, a "
            "smaller --dtype, or raise --max-memory."
        )
    return MemoryPlan(num_blocks, largest, for_blocks - weights, usable, end_bytes)


def parse_blocks(text: str, num_blocks: int) -> tuple[int, int]:
    """Read ``START:END`` and check it against the model.

    Raises:
        BadBlocks: malformed, empty, or outside the model.
    """
    first, separator, last = text.partition(":")
    if not separator or not first.isdecimal() or not last.isdecimal():
        raise BadBlocks(f"--blocks {text!r} is not a range; write START:END, for example 0:{num_blocks}.")
    start, end = int(first), int(last)
    if start >= end:
        raise BadBlocks(f"--blocks {text} is empty; END must be greater than START, for example 0:{num_blocks}.")
    if end > num_blocks:
        raise BadBlocks(f"--blocks {text} is outside the model, which has the blocks 0:{num_blocks}.")
    return start, end
