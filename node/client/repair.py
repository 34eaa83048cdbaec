"""What takes the place of lost stages: which blocks are planned anew, and the new stages opened between the old ones.

Runs in the client's event loop. When it is time for a repair, and how the new stages get the history, is decided by
``chain``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from dht.errors import DhtError
from dht.swarm import Swarm
from node.client.dealings import Dealings
from node.client.recheck import Rechecked
from node.client.route import Stage
from node.client.stage_link import RETRYABLE_WORDS, SessionShape, StageFailed, StageLink, is_secondary, open_links
from node.errors import MissingBlocks, NodeError, StageLost

_ADOPT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done about lost stages."""

    lost: tuple[str, ...]
    """Blocks and peers of the stages that were replaced."""
    replaced_by: tuple[str, ...]
    """Blocks and peers of those that took their place."""
    replayed_tokens: int
    """Positions of the history that they were given."""
    same_drift_class: bool
    """Whether old and new compute alike: weights of one dtype, one software. Otherwise bytes may differ, and tokens."""
    were_leaving: bool = False
    """Whether the stages had asked for it before they leave; otherwise they were gone, silent or wrong."""
    seconds: float = 0.0
    """From the loss to the end of the replay."""


class Planner(Protocol):
    """Knows the swarm: who could take over."""

    async def plan(self, start: int, end: int, without: Set[str]) -> tuple[Stage, ...]:
        """Return stages that cover the blocks ``[start, end)``, none of them a peer of ``without``.

        Raises:
            MissingBlocks: some blocks have no server.
        """

    def failed(self, peer_id: str, reason: Exception) -> None:
        """Note that a peer was lost, so that it is left out for a while."""

    def tell(self, repaired: Repaired) -> None:
        """Tell whoever wants to know."""

    def rechecked(self, rechecked: Rechecked) -> None:
        """Tell whoever wants to know what running again has shown."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """New stages, open, for the links ``first`` to ``last``."""

    first: int
    last: int
    links: list[StageLink]


async def open_replacement(
    swarm: Swarm,
    planner: Planner,
    session: bytes,
    shape: SessionShape,
    links: Sequence[StageLink],
    lost: Set[StageLink],
    *,
    are_leaving: bool = False,
    dealings: Dealings | None = None,
) -> Replacement:
    """Open stages for the first lost links that stand together; the stage behind them takes steps from the new ones.

    Where nobody holds just those blocks, neighbours that are not lost are replaced too. With ``are_leaving`` the links
    are not lost, and their own servers do not take over from themselves.

    Raises:
        MissingBlocks: nobody holds the lost blocks.
        StageFailed: a new stage is not reachable, or refuses.
        StageLost: the stage behind does not answer.
    """
    first, last, stages = await _plan(planner, links, lost, are_leaving=are_leaving)
    previous = links[first - 1].stage.peer_id if first else swarm.peer_id
    behind = links[last + 1] if last + 1 < len(links) else None
    try:
        new = await open_links(
            swarm,
            stages,
            session,
            shape,
            previous=previous,
            after=behind.stage if behind is not None else None,
            dealings=dealings,
        )
    except StageFailed as failure:
        if not is_secondary(failure):
            planner.failed(failure.stage.peer_id, failure.reason)
        raise
    try:
        if behind is not None:
            await behind.adopt(new[-1].stage.peer_id, _ADOPT_TIMEOUT_S, shape.segment, shape.sent)
    except BaseException:  # Being cancelled included: nobody else knows these.
        await asyncio.gather(*(link.close() for link in new))
        raise
    return Replacement(first, last, new)


async def rehearse(swarm: Swarm, planner: Planner, links: Sequence[StageLink], old: Set[StageLink]) -> None:
    """Find out who would take the place of ``old`` and reach them, so that the change itself takes a moment only.

    Raises:
        MissingBlocks: nobody holds those blocks.
        StageLost: who holds them does not answer.
    """
    _, _, stages = await _plan(planner, links, old, are_leaving=True)
    for stage in stages:
        try:
            await swarm.ping(stage.peer_id)
        except DhtError as error:
            planner.failed(stage.peer_id, error)
            raise StageLost(f"The stage {stage} does not answer; {RETRYABLE_WORDS}.") from error


async def _plan(
    planner: Planner, links: Sequence[StageLink], lost: Set[StageLink], *, are_leaving: bool
) -> tuple[int, int, tuple[Stage, ...]]:
    first = next(index for index, link in enumerate(links) if link in lost)
    last = first
    while last + 1 < len(links) and links[last + 1] in lost:
        last += 1
    missing: NodeError | None = None
    for low, high in _widened(first, last, len(links)):
        kept = {link.stage.peer_id for link in (*links[:low], *links[high + 1 :])}
        if are_leaving:
            kept |= {link.stage.peer_id for link in lost}
        try:
            return low, high, await planner.plan(links[low].stage.start, links[high].stage.end, kept)
        except MissingBlocks as error:
            missing = missing or error
    assert missing is not None
    raise missing


def unreachable(lost: Sequence[Stage], reason: Exception | None) -> MissingBlocks:
    """Return the error for stages whose place nobody has taken."""
    blocks = ", ".join(f"{stage.start}:{stage.end}" for stage in lost)
    last = f" (the last one tried: {reason})" if reason is not None else ""
    return MissingBlocks(
        f"No server that can be reached holds the blocks {blocks}{last}; start one with "
        f"`efedllm serve MODEL --join CODE --blocks {blocks.split(', ')[0]}`, or try again when one is back."
    )


def _widened(first: int, last: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of links that hold ``[first, last]``, narrow ones first."""
    ranges = [(low, high) for low in range(first + 1) for high in range(last, count)]
    yield from sorted(ranges, key=lambda pair: pair[1] - pair[0])
