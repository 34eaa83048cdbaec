"""Choose the servers that a session runs through. Pure: a directory in, a route out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from dht.directory import Directory
from dht.records import EMBEDS, HEADS, Announcement, ServerState
from node.errors import MissingBlocks


@dataclass(frozen=True, slots=True)
class Stage:
    """One span of a route."""

    peer_id: str
    start: int
    end: int
    addresses: tuple[str, ...]
    drift_class: str = field(default="", compare=False)
    """What decides how its results are rounded: dtype of the weights and version of the software."""

    def __str__(self) -> str:
        return f"{self.start}:{self.end} on {self.peer_id}"


@dataclass(frozen=True, slots=True)
class Route:
    """Stages that cover the model's blocks in order, without gap or overlap."""

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return ", ".join(str(stage) for stage in self.stages)


@dataclass(frozen=True, slots=True)
class _Usable:
    """What a route may take of one server."""

    server: Announcement
    start: int
    end: int


def plan_route(
    directory: Directory,
    num_blocks: int,
    avoid: Collection[str] = (),
    *,
    needs_ends: bool = False,
    start: int = 0,
    end: int | None = None,
) -> Route:
    """Cover blocks with the fewest stages; among equals take the higher throughput, then the lower id.

    Args:
        directory: who serves what now.
        num_blocks: blocks of the model.
        avoid: peers not to use.
        needs_ends: whether the first stage must embed token ids and the last one compute logits. A server that does not
            is then used without the model's first or last block.
        start: first block to cover.
        end: one past the last block to cover; None: all of them.

    Raises:
        MissingBlocks: some blocks have no usable server; the message names them.
    """
    online = [
        server for server in directory.servers if server.state is ServerState.ONLINE and server.owner not in avoid
    ]
    usable = [_part_of(server, num_blocks, needs_ends) for server in online]
    stages: list[Stage] = []
    at, end = start, num_blocks if end is None else end
    while at < end:
        covering = [replace(part, end=min(part.end, end)) for part in usable if part.start <= at < part.end]
        if not covering:
            raise MissingBlocks(_missing_message(usable, num_blocks, online if needs_ends else None))
        best = max(covering, key=_preference)
        drift_class = f"{best.server.dtype} {best.server.version}"
        stages.append(Stage(best.server.owner, at, best.end, tuple(best.server.addresses), drift_class))
        at = best.end
    return Route(tuple(stages))


def _part_of(server: Announcement, num_blocks: int, needs_ends: bool) -> _Usable:
    start, end = server.start, min(server.end, num_blocks)
    if needs_ends and start == 0 and not server.ends & EMBEDS:
        start = 1
    if needs_ends and end == num_blocks and not server.ends & HEADS:
        end -= 1
    return _Usable(server, start, end)


def _preference(part: _Usable) -> tuple[int, int, list[int]]:
    return part.end, part.server.throughput_milli, [-ord(letter) for letter in part.server.owner]


def _missing_message(usable: list[_Usable], num_blocks: int, online: list[Announcement] | None) -> str:
    """Say which blocks nobody holds; ``online``: all servers, where ends are needed that some do not offer."""
    held = {block for part in usable for block in range(part.start, part.end)}
    if online is not None and all(
        any(server.start <= at < server.end for server in online) for at in range(num_blocks)
    ):
        lacking = "embeds token ids" if 0 not in held else "computes logits"
        return (
            f"All blocks have servers, but none of them {lacking} for clients without weights; generate without --thin "
            "(thin=True), or start a server of that end without --no-ends."
        )
    missing = [block for block in range(num_blocks) if block not in held]
    ranges: list[list[int]] = []
    for block in missing:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] = block + 1
        else:
            ranges.append([block, block + 1])
    listed = ", ".join(f"{start}:{end}" for start, end in ranges)
    return (
        f"No server holds the blocks {listed} of {num_blocks}; start one with `efedllm serve MODEL --join CODE "
        f"--blocks {ranges[0][0]}:{ranges[0][1]}`, or wait for one to come back."
    )
