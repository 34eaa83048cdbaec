"""Choose the servers that a session runs through. Pure: a directory in, a route out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dht.directory import Directory
from dht.records import Announcement, ServerState
from node.errors import MissingBlocks


@dataclass(frozen=True, slots=True)
class Stage:
    """One span of a route."""

    peer_id: str
    start: int
    end: int
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.start}:{self.end} on {self.peer_id}"


@dataclass(frozen=True, slots=True)
class Route:
    """Stages that cover the model's blocks in order, without gap or overlap."""

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return ", ".join(str(stage) for stage in self.stages)


def plan_route(directory: Directory, num_blocks: int, avoid: Collection[str] = ()) -> Route:
    """Cover ``[0, num_blocks)`` with the fewest stages; among equals take the higher throughput, then the lower id.

    Args:
        directory: who serves what now.
        num_blocks: blocks of the model.
        avoid: peers not to use.

    Raises:
        MissingBlocks: some blocks have no usable server; the message names them.
    """
    usable = [
        server for server in directory.servers if server.state is ServerState.ONLINE and server.owner not in avoid
    ]
    stages: list[Stage] = []
    at = 0
    while at < num_blocks:
        covering = [server for server in usable if server.start <= at < server.end]
        if not covering:
            raise MissingBlocks(_missing_message(usable, num_blocks))
        best = max(covering, key=_preference)
        stages.append(Stage(best.owner, at, min(best.end, num_blocks), tuple(best.addresses)))
        at = best.end
    return Route(tuple(stages))


def _preference(server: Announcement) -> tuple[int, int, list[int]]:
    return server.end, server.throughput_milli, [-ord(letter) for letter in server.owner]


def _missing_message(usable: list[Announcement], num_blocks: int) -> str:
    held = {block for server in usable for block in range(server.start, server.end)}
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
