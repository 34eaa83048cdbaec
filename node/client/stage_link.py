"""One stage of an open session, as its client has it: a control stream, and questions that get answers.

Runs in the client's event loop. What a stage's messages mean for the session is decided by ``chain``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from dht.errors import UnavailableError as PeerUnavailable
from dht.swarm import Swarm
from node.client.dealings import Deal, Dealings
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.errors import NodeError, Refused, SessionError, StageLost, UnavailableError
from node.transport import FrameStream
from node.wire import PROTOCOL, Accept, Adopt, Alive, Close, Cosign, Frame, Open, Probe, Refuse, Replay

_OPEN_TIMEOUT_S = 10.0
_SETTLE_S = 2.5
"""A stage has so long to ask for the last signatures of a session."""
_GRACE_S = 0.05
"""When this process was held up itself, the answer may be here and not yet read."""
RETRYABLE_WORDS = "try again, or let the swarm grow"


@dataclass(frozen=True, slots=True)
class SessionShape:
    """What every stage is told when a session opens."""

    manifest: bytes
    batch: int
    left_padding: tuple[int, ...]
    max_length: int
    codec: str
    hidden_size: int = 0
    """Of the model."""
    thin: ThinTerms | None = None
    """What the ends of the route do for a client without weights; None: nothing."""
    steps: int = 0
    """Steps that were answered before: 0, unless the stage takes another one's place."""
    segment: int = 0
    """Segment in which the stage begins: 0, unless it takes another one's place."""
    sent: int = 0
    """Steps that were sent before."""


class StageFailed(UnavailableError):
    """A stage could not be opened; another server may do."""

    def __init__(self, stage: Stage, reason: NodeError | PeerUnavailable) -> None:
        super().__init__(f"The stage {stage} is not available: {reason}")
        self.stage = stage
        self.reason = reason


class StageLink:
    """An open stage. Made by ``open_link``; ended by ``close`` or ``cut``."""

    def __init__(
        self,
        stage: Stage,
        session: bytes,
        frames: FrameStream,
        dtype: str,
        deal: Deal | None = None,
        agreement: bytes = b"",
    ) -> None:
        self.stage = stage
        self.deal = deal
        """What it has agreed to; None: nothing is signed for."""
        self.agreement = agreement
        """Its signature that it takes that, 64 bytes."""
        self.dtype = dtype
        """What the stage computes in."""
        self.alive: Alive | None = None
        """Its last sign of life."""
        self._session = session
        self._frames = frames
        self._tags = itertools.count(1)
        self._questions: dict[int, asyncio.Future[Alive]] = {}
        self._watcher: asyncio.Task[None] | None = None

    @property
    def bytes_out(self) -> int:
        """Bytes sent on the control stream."""
        return self._frames.bytes_out

    @property
    def bytes_in(self) -> int:
        """Bytes received on the control stream."""
        return self._frames.bytes_in

    def watch(self, take: Callable[[StageLink, Frame], None], lost: Callable[[StageLink, NodeError], None]) -> None:
        """Hand every frame of the stage to ``take`` from now on; call ``lost`` once, when no more can come.

        Args:
            take: raises a NodeError for what the stage may not send.
            lost: what happened to it.
        """
        self._watcher = asyncio.create_task(self._watch(take, lost))

    async def _watch(
        self, take: Callable[[StageLink, Frame], None], lost: Callable[[StageLink, NodeError], None]
    ) -> None:
        try:
            while (frame := await self._frames.receive()) is not None:
                match frame:
                    case Alive():
                        self.alive = frame
                        question = self._questions.pop(frame.tag, None)
                        if question is not None and not question.done():
                            question.set_result(frame)
                    case Refuse():
                        raise as_error(self.stage, frame)
                    case _:
                        take(self, frame)
            raise StageLost(f"The stage {self.stage} is gone; {RETRYABLE_WORDS}.")
        except NodeError as error:
            lost(self, error)

    async def probe(self, timeout_s: float) -> Alive:
        """Ask for a sign of life.

        Raises:
            StageLost: none came in time.
        """
        tag = next(self._tags)
        return await self._ask(Probe(self._session, tag), tag, timeout_s)

    async def adopt(self, previous: str, timeout_s: float, segment: int = 0, sent: int = 0) -> Alive:
        """Tell the stage that steps come from the peer ``previous`` from now on.

        Args:
            previous: the peer.
            timeout_s: for the answer.
            segment: in which it begins.
            sent: steps that have been sent so far.

        Raises:
            StageLost: it did not confirm in time.
        """
        tag = next(self._tags)
        return await self._ask(Adopt(self._session, tag, previous, segment, sent), tag, timeout_s)

    async def replay(self, new: Stage, answered: int, num_stages: int, timeout_s: float, segment: int = 0) -> Alive:
        """Tell the stage to hand its outputs to ``new``, all of them, in ``segment``; return when it has done so.

        Raises:
            StageLost: it did not say so in time.
        """
        tag = next(self._tags)
        order = Replay(self._session, tag, new.peer_id, new.addresses, answered, num_stages, segment)
        return await self._ask(order, tag, timeout_s)

    async def _ask(self, frame: Probe | Adopt | Replay, tag: int, timeout_s: float) -> Alive:
        answer: asyncio.Future[Alive]
        answer = self._questions[tag] = asyncio.get_running_loop().create_future()
        try:
            await self._frames.send(frame, timeout_s)
            await asyncio.wait({answer}, timeout=timeout_s)
            if not answer.done():
                await asyncio.sleep(_GRACE_S)
        except UnavailableError as error:
            raise StageLost(f"The stage {self.stage} is gone; {RETRYABLE_WORDS}.") from error
        finally:
            self._questions.pop(tag, None)
        if not answer.done():
            raise StageLost(f"The stage {self.stage} does not answer; {RETRYABLE_WORDS}.")
        return answer.result()

    def tell(self, frame: Cosign) -> None:
        """Send a frame without waiting; one that cannot be sent is no loss, because the stage is gone."""
        with contextlib.suppress(UnavailableError):
            self._frames.write(frame)

    async def close(self) -> None:
        """End the session at this stage; where work is signed for, let it ask for the last signatures first."""
        is_counted = self.deal is not None and self._watcher is not None and not self._watcher.done()
        if not is_counted:
            await self._stop_watching()
        with contextlib.suppress(UnavailableError):
            await self._frames.send(Close(self._session), 1.0)
            if is_counted and self._watcher is not None:
                await asyncio.wait({self._watcher}, timeout=_SETTLE_S)
        await self._stop_watching()
        await self._frames.close()

    async def cut(self) -> None:
        """Let go of a stage that does not answer."""
        await self._stop_watching()
        await self._frames.close()

    async def _stop_watching(self) -> None:
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)


async def open_link(
    swarm: Swarm,
    stage: Stage,
    session: bytes,
    shape: SessionShape,
    *,
    previous: str,
    next_stage: Stage | None,
    dealings: Dealings | None = None,
) -> StageLink:
    """Open a session at one stage, in another lane where it does not take the first one: it may have been restarted.

    Args and errors are those of ``_open_link``.
    """
    try:
        return await _open_link(swarm, stage, session, shape, previous, next_stage, dealings)
    except StageFailed as failure:
        if dealings is None or not (isinstance(failure.reason, Refused) and failure.reason.code == "lane"):
            raise
        dealings.forget_lanes(stage.peer_id)
    return await _open_link(swarm, stage, session, shape, previous, next_stage, dealings)


async def _open_link(
    swarm: Swarm,
    stage: Stage,
    session: bytes,
    shape: SessionShape,
    previous: str,
    next_stage: Stage | None,
    dealings: Dealings | None,
) -> StageLink:
    """Open a session at one stage.

    Args:
        swarm: reaches it.
        stage: the server, and the blocks that it shall run.
        session: id of the session.
        shape: what every stage is told.
        previous: peer that steps will come from.
        next_stage: where outputs go; None: to the client.
        dealings: makes offers; None: nothing is signed for.

    Raises:
        StageFailed: it is not reachable, or refuses.
    """
    max_tokens = shape.batch * shape.max_length
    deal = None
    if dealings is not None:
        deal = dealings.offer(session, shape.manifest, shape.codec, stage, max_tokens, shape.left_padding)
    try:
        frames = FrameStream(await swarm.dial(stage.peer_id, PROTOCOL, addresses=stage.addresses))
    except PeerUnavailable as error:
        raise StageFailed(stage, error) from error
    thin = shape.thin
    opened = Open(
        session=session,
        manifest=shape.manifest,
        start=stage.start,
        end=stage.end,
        batch=shape.batch,
        left_padding=shape.left_padding,
        max_length=shape.max_length,
        codec=shape.codec,
        previous=previous,
        next=next_stage.peer_id if next_stage else "",
        next_addresses=next_stage.addresses if next_stage else (),
        embed=thin is not None and stage.start == 0,
        top=thin.top if thin and next_stage is None else 0,
        sampling=thin.sampling if thin and next_stage is None else None,
        steps=shape.steps,
        offer=deal.body if deal is not None else b"",
        offer_signature=deal.signature if deal is not None else b"",
        segment=shape.segment,
        sent=shape.sent,
    )
    try:
        await frames.send(opened)
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            answer = await frames.receive()
        match answer:
            case Accept() if answer.session == session:
                if deal is not None and not deal.is_accepted(answer.agreement):
                    raise SessionError(f"The stage {stage} does not sign what it takes on.")
                return StageLink(stage, session, frames, answer.dtype, deal, answer.agreement)
            case Refuse():
                raise as_error(stage, answer)
            case None:
                raise StageLost(f"The stage {stage} closed the stream.")
            case _:
                raise SessionError(f"The stage {stage} answered open with {type(answer).__name__}.")
    except TimeoutError as error:
        await frames.close()
        raise StageFailed(stage, StageLost(f"no answer within {_OPEN_TIMEOUT_S:.0f} s")) from error
    except NodeError as error:
        await frames.close()
        raise StageFailed(stage, error) from error
    except asyncio.CancelledError:
        await frames.close()
        raise


async def open_links(
    swarm: Swarm,
    stages: tuple[Stage, ...],
    session: bytes,
    shape: SessionShape,
    *,
    previous: str,
    after: Stage | None,
    dealings: Dealings | None = None,
) -> list[StageLink]:
    """Open a session at neighbouring stages at once.

    Args:
        swarm: reaches them.
        stages: in the order of their blocks.
        session: id of the session.
        shape: what every stage is told.
        previous: peer from which the first one takes its steps.
        after: the stage that the last one hands on to; None: to the client.
        dealings: makes offers; None: nothing is signed for.

    Raises:
        StageFailed: a stage is not reachable or refuses; every other stage is closed again.
    """
    peers = [previous, *(stage.peer_id for stage in stages)]
    behind = [*stages[1:], after]
    opening = [
        asyncio.create_task(
            open_link(swarm, stage, session, shape, previous=peer, next_stage=following, dealings=dealings)
        )
        for stage, peer, following in zip(stages, peers, behind, strict=False)
    ]
    try:
        done = await asyncio.gather(*opening, return_exceptions=True)
    except asyncio.CancelledError:
        done = await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in done if isinstance(link, StageLink)))
        raise
    failures = [outcome for outcome in done if isinstance(outcome, BaseException)]
    links = [outcome for outcome in done if isinstance(outcome, StageLink)]
    if failures:
        await asyncio.gather(*(link.close() for link in links))
        # A stage whose next stage cannot be reached is not the one at fault when that one failed by itself.
        failures.sort(key=is_secondary)
        raise failures[0]
    return links


def with_rows(shape: SessionShape, rows: tuple[int, ...] | None) -> SessionShape:
    """Return the shape of a session after a selection of rows; None: all of them."""
    if rows is None:
        return shape
    padding = tuple(shape.left_padding[row] for row in rows) if shape.left_padding else ()
    return replace(shape, batch=len(rows), left_padding=padding)


def as_error(stage: Stage, refusal: Refuse) -> Refused:
    """Return a stage's refusal as the error that it is."""
    return Refused(
        refusal.code,
        f"The stage {stage} refuses: {refusal.message}",
        retryable=refusal.retryable,
        retry_after_s=refusal.retry_after_ms / 1000,
    )


def is_secondary(failure: BaseException) -> bool:
    """Say whether a stage failed only because the one behind it could not be reached."""
    reason = failure.reason if isinstance(failure, StageFailed) else None
    return isinstance(reason, Refused) and reason.code == "next_unreachable"
