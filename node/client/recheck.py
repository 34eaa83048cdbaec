"""What came by way of a stage that did not sign for it: kept until it is signed for, run again elsewhere, compared.

Runs in the client's event loop. It knows nothing of tokens: two answers agree when their hidden states do, up to what
rounding does. How exact a stage has to be is decided by audits; here only what is plainly something else is found.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from node.errors import NodeError, UnavailableError
from node.model.tensors import from_payload
from node.wire import Payload, Result, Step, payload_bytes

MAX_KEPT_BYTES = 16 * 2**20
"""Results of one session that are kept; where more is not signed for, the oldest are forgotten."""
ROUNDING = 0.05
"""Two computations of one position differ by less than this share of its length, whatever they are run on."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of a step."""

    number: int
    """Of the step, among those that were answered, from 1."""
    position: int
    shape: tuple[int, ...]
    payload: Payload
    tokens: int
    """Positions that still count: later ones were cropped."""


class Recent:
    """The results of one session that not every stage has signed for."""

    def __init__(self) -> None:
        self._kept: deque[Kept] = deque()
        self._num_bytes = 0

    def sent(self, step: Step) -> None:
        """Note that a step is sent: what it crops does not count any more."""
        if step.rows is not None:
            self._crop(0)  # Rows change places: what is run again would not be found.
        elif step.crop is not None:
            self._crop(step.crop)

    def answered(self, result: Kept) -> None:
        """Keep a result."""
        self._kept.append(result)
        self._num_bytes += len(result.payload)
        while self._num_bytes > MAX_KEPT_BYTES:
            self._drop()

    def signed(self, number: int) -> None:
        """Note that every stage has signed for the steps up to this one."""
        while self._kept and self._kept[0].number <= number:
            self._drop()

    def since(self, number: int) -> tuple[Kept, ...]:
        """Return the results of later steps than this one."""
        return tuple(entry for entry in self._kept if entry.number > number)

    def _crop(self, position: int) -> None:
        kept = (replace(entry, tokens=min(entry.tokens, position - entry.position)) for entry in self._kept)
        self._kept = deque(entry for entry in kept if entry.tokens > 0)
        self._num_bytes = sum(len(entry.payload) for entry in self._kept)

    def _drop(self) -> None:
        self._num_bytes -= len(self._kept.popleft().payload)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Results that a stage has not signed for, and what they were made from."""

    peer_id: str
    """Of the stage."""
    kept: tuple[Kept, ...]
    steps: tuple[Step, ...]
    """The history, from its beginning, as the first stage was given it."""
    codec: str
    left_padding: tuple[int, ...]
    """Positions of each row that are no text; empty: none."""

    @property
    def end(self) -> int:
        """One past the last position in doubt."""
        return max(entry.position + entry.tokens for entry in self.kept)

    @property
    def num_positions(self) -> int:
        """Positions in doubt."""
        return sum(entry.tokens for entry in self.kept)


@dataclass(frozen=True, slots=True)
class Rechecked:
    """What running them again has shown."""

    peer_id: str
    num_positions: int
    """Positions that were to be compared."""
    num_different: int = 0
    first_different: int | None = None
    """Position."""
    largest: float = 0.0
    """Largest difference, as a share of the length of what came first."""
    why_not: str = ""
    """Why they could not be run again; empty: they were."""

    def in_words(self) -> str:
        """Say it to the user."""
        unsigned = (
            f"The server {self.peer_id} has not signed as it should for {self.num_positions} positions of an answer"
        )
        if self.why_not:
            return f"{unsigned}, and they could not be run again elsewhere ({self.why_not}); check that answer."
        if not self.num_different:
            return f"{unsigned}; elsewhere they come out the same."
        return (
            f"{unsigned}, and elsewhere {self.num_different} of them come out differently (by up to "
            f"{min(self.largest, 9.99):.0%}): do not trust that answer from position {self.first_different} on, and "
            "ask again."
        )


class Runner(Protocol):
    """An open session: ``chain.Chain``."""

    session: bytes

    async def run(self, steps: Sequence[Step]) -> list[Result]:
        """Send steps and return their results."""

    async def close(self) -> None:
        """End it."""


class Rechecking:
    """Runs what a session's stages have not signed for again, one doubt at a time; ended by ``close``.

    One at a time: who does not sign shall not make others work without end.

    Args:
        open_elsewhere: opens a session, long enough for a doubt, without the stage in doubt.
        tell: called with what comes of it.
    """

    def __init__(self, open_elsewhere: Callable[[Doubt], Awaitable[Runner]], tell: Callable[[Rechecked], None]) -> None:
        self._open_elsewhere = open_elsewhere
        self._tell = tell
        self._running: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a doubt is being looked into."""
        return self._running is not None and not self._running.done()

    def begin(self, made: Doubt) -> None:
        """Look into a doubt, without waiting for what comes of it."""
        self._running = asyncio.create_task(self._recheck(made))

    async def _recheck(self, made: Doubt) -> None:
        try:
            chain = await self._open_elsewhere(made)
        except UnavailableError as error:
            self._tell(Rechecked(made.peer_id, made.num_positions, why_not=str(error)))
        else:
            self._tell(await run_again(made, chain))

    async def close(self, patience_s: float) -> None:
        """Wait for the doubt that is being looked into, for a while."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=patience_s)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


def doubt(
    peer_id: str, kept: tuple[Kept, ...], history: Iterable[Step], codec: str, left_padding: tuple[int, ...]
) -> Doubt:
    """Take from a history what is needed to run results again.

    Args:
        peer_id: of the stage that did not sign.
        kept: what it did not sign for; not empty.
        history: pieces, as ``StepLog.replay`` gives them.
        codec: of the session.
        left_padding: of each row; empty: none.
    """
    end = max(entry.position + entry.tokens for entry in kept)
    steps = []
    for piece in history:
        if piece.position >= end:
            break
        steps.append(replace(piece, replay=0, number=0, crop=None, rows=None, segment=0))
    return Doubt(peer_id, kept, tuple(steps), codec, left_padding)


async def run_again(made: Doubt, chain: Runner) -> Rechecked:
    """Run what is in doubt in a session of its own, which is closed then."""
    try:
        results = await chain.run([replace(step, session=chain.session) for step in made.steps])
        return await asyncio.to_thread(compare, made, results)
    except NodeError as error:
        return Rechecked(made.peer_id, made.num_positions, why_not=str(error))
    finally:
        await chain.close()


def compare(made: Doubt, results: Sequence[Result]) -> Rechecked:
    """Compare what came first with what came then."""
    again = torch.cat([_hidden(result.payload, result.shape, made.codec) for result in results], dim=1)
    differences: dict[int, float] = {}
    for entry in made.kept:
        first = _hidden(entry.payload, entry.shape, made.codec)[:, : entry.tokens]
        then = again[:, entry.position : entry.position + entry.tokens]
        share = (first - then).norm(dim=2) / then.norm(dim=2).clamp_min(1e-9)
        share = torch.where(share.isfinite(), share, torch.inf)
        for row, padding in enumerate(made.left_padding):
            share[row, : max(0, padding - entry.position)] = 0.0
        differences.update({entry.position + at: value for at, value in enumerate(share.amax(dim=0).tolist())})
    different = [position for position, value in differences.items() if value > ROUNDING]
    return Rechecked(
        made.peer_id,
        len(differences),
        num_different=len(different),
        first_different=min(different, default=None),
        largest=max(differences.values(), default=0.0),
    )


def _hidden(payload: Payload, shape: tuple[int, ...], codec: str) -> torch.Tensor:
    assert len(payload) == payload_bytes(codec, shape)
    return from_payload(payload, shape, codec, dtype=torch.float32, device=torch.device("cpu"))
