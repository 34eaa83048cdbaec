"""Carries audits out, one after the other, beside the client's sessions: has stages open what they have signed for.

    due ──> inputs: the stage before, or our own log ─┐
            outputs: the stage, or what came to us ───┴─> hashes as signed? ──> judge ──> result

Runs in the client's event loop; hashing and the judge in threads. It knows nothing of models: whether outputs follow
from inputs is the judge's to say. What is not opened, or is not what was signed for, has failed without a judge.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Protocol, TypeAlias, runtime_checkable

from dht.errors import DhtError
from dht.swarm import Swarm
from node.check.patience import until_cancelled
from node.client.audit_book import AuditBook, AuditResult, Outcome, Verdict
from node.client.audit_check import digest_of, first_wrong
from node.client.audit_draw import nobody
from node.client.audit_opening import Given, Opening
from node.client.audit_plan import DueAudit, Found
from node.client.dealings import Deal
from node.client.reveal_call import Dialer, NotAnswered, fetch
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.errors import Refused, RemoteError, StageAtFault, UnavailableError
from node.step_log import StepLog
from node.wire import LOG_HELD_S, MAX_LENGTH, MAX_OPENING_BYTES, MAX_REVEALED_SHARE, MAX_REVEALS, Reveal

logger = logging.getLogger(__name__)

Judge: TypeAlias = Callable[[Opening], Verdict]
"""Says whether a stage's outputs follow from its inputs. Called in a thread; takes as long as it likes, but ends
where it ``look``s (``node.check.patience``) when the client leaves."""
AskOthers: TypeAlias = Callable[[Opening], Awaitable[Verdict]]
"""Has somebody else say it."""


@runtime_checkable
class Attending(Protocol):
    """A judge that has something to do in the swarm while its client runs."""

    async def attend(self, swarm: Swarm, anchors: Sequence[str]) -> None:
        """Do it; cancelled when the client leaves.

        Args:
            swarm: entered.
            anchors: peer ids whose trust counts for the client; none: those of the swarm.
        """


def attending_of(judge: object) -> Attending | None:
    """Return a judge that has something to do in the swarm; None: it has not."""
    return judge if isinstance(judge, Attending) else None


MAX_WAITING = 256
"""Audits that may wait; more are not carried out."""
PAUSES_S = (0.5, 1.0, 2.0)
"""Between the tries at a stage that does not answer, or has no time."""
_MAX_HUNG_UP = 2
"""A stage that can be reached and ends so many streams instead of answering does not want to."""
_MARGIN_S = 5.0
"""A question may be so long on its way: a log that is held for less is not expected to be there."""
_MAX_INPUTS = 4
"""Stages whose inputs are kept, because the next chunk's begin with them."""


@dataclass(frozen=True, slots=True)
class AuditedStage:
    """What an opening says of a stage."""

    stage: Stage
    dtype: str
    deal: Deal
    agreement: bytes = b""
    """Its signature over the deal's offer."""


@dataclass(slots=True)
class AuditedSession:
    """What audits of one session need to know of it; the session itself keeps it up to date."""

    session: bytes
    manifest: bytes
    codec: str
    hidden_size: int
    left_padding: tuple[int, ...]
    thin: ThinTerms | None
    is_whole: Callable[[DueAudit], bool]
    """Says whether nothing of what an audit needs has been cropped."""
    stages: dict[str, AuditedStage] = field(default_factory=dict)
    """By peer, also those that were replaced."""
    log: StepLog | None = None
    """What the client has sent to the first stage."""
    ended_s: float | None = None
    """When it ended, by the monotonic clock; None: it runs."""
    lost: set[str] = field(default_factory=set)
    """Stages that went in the middle of it, which need not have kept anything."""
    asked: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How often each stage was asked, and for how many bytes."""

    def is_held(self, peer_id: str) -> bool:
        """Say whether a stage must have what it has handed on."""
        is_recent = self.ended_s is None or time.monotonic() - self.ended_s < LOG_HELD_S - _MARGIN_S
        return is_recent and peer_id not in self.lost

    def may_ask(self, peer_id: str, num_bytes: int, held_bytes: int) -> bool:
        """Say whether a stage that holds so many bytes may be asked for some of them, and count that."""
        times, total = self.asked.get(peer_id, (0, 0))
        if times >= MAX_REVEALS or total + num_bytes > MAX_REVEALED_SHARE * held_bytes:
            return False
        self.asked[peer_id] = times + 1, total + num_bytes
        return True


def judged(result: AuditResult, verdict: Verdict) -> AuditResult:
    """Return a result with what a judge says of its opening."""
    owner = result.peer_id if verdict.outcome is Outcome.FAIL else ""
    return replace(
        result,
        outcome=verdict.outcome,
        why=verdict.why,
        owner=owner,
        measured=verdict.measured,
        shows_itself=verdict.shows_itself,
    )


class InVain(UnavailableError):
    """An audit comes to nothing."""

    def __init__(self, outcome: Outcome, why: str, owner: str = "") -> None:
        super().__init__(why)
        self.outcome = outcome
        self.owner = owner


@dataclass(slots=True)
class _Inputs:
    """What one stage was given, as far as it has been opened and is what was signed for."""

    log: StepLog
    checked: int = 0
    """Chunks."""
    places: list[tuple[int, int]] = field(default_factory=list)


class Auditor:
    """Audits of one client. Ended by ``close``.

    Args:
        dial: opens streams to stages.
        tell: called with every result.
        per_mille: share of the chunks of each stage that are audited, thousandths.
        judge: judges what was opened; None: it is opened, and compared with what was signed.
        ask: asked where there is no judge, or it cannot run it again; None: nobody is.
        wholly: peers of which every chunk is audited.
        is_watched: says of which peers more are than of others.
        book: results are entered there; None: into one of its own.
    """

    def __init__(
        self, dial: Dialer, tell: Callable[[AuditResult], None], per_mille: int, judge: Judge | None = None,
        *, ask: AskOthers | None = None, wholly: Set[str] = frozenset(), is_watched: Callable[[str], bool] = nobody,
        book: AuditBook | None = None,
    ) -> None:  # fmt: skip
        self.per_mille = per_mille
        self.wholly = wholly
        self.is_watched = is_watched
        self.judge = judge
        self.ask = ask
        self.book = book if book is not None else AuditBook()
        self._dial = dial
        self._tell = tell
        self._waiting: deque[tuple[DueAudit, AuditedSession]] = deque()
        self._inputs: OrderedDict[tuple[bytes, int], _Inputs] = OrderedDict()
        """By session and place."""
        self._at_fault: set[str] = set()
        """Stages that have failed: nobody is patient with them any more."""
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False

    def begin(self, found: Sequence[Found], session: AuditedSession) -> None:
        """Take audits of a session on, without waiting for what comes of them."""
        for each in found:
            if isinstance(each, AuditResult):
                self._enter(each)
            elif len(self._waiting) >= MAX_WAITING or self._is_closed:
                why = "the client is leaving" if self._is_closed else "too many audits wait"
                self._enter(_result(each, session, Outcome.NOT_AUDITABLE, why))
            else:
                self._waiting.append((each, session))
        if self._waiting and (self._working is None or self._working.done()):
            self._working = asyncio.create_task(self._work())

    def _enter(self, result: AuditResult) -> None:
        if result.outcome is Outcome.FAIL:
            self._at_fault.add(result.owner)
        self.book.enter(result)
        self._tell(result)

    async def _work(self) -> None:
        while self._waiting:
            due, session = self._waiting[0]
            result = await self._audit(due, session)
            self._waiting.popleft()
            self._enter(result)
        self._inputs.clear()

    async def drained(self) -> None:
        """Wait until no audit waits."""
        while self._working is not None and not self._working.done():
            await asyncio.wait({self._working})

    async def close(self, patience_s: float) -> None:
        """Wait for the audits that are under way, for a while; those that are not done come to nothing."""
        self._is_closed = True
        if self._working is not None:
            await asyncio.wait({self._working}, timeout=patience_s)
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        while self._waiting:
            due, session = self._waiting.popleft()
            self._enter(_result(due, session, Outcome.INCONCLUSIVE, "the client has left"))

    async def _audit(self, due: DueAudit, session: AuditedSession) -> AuditResult:
        try:
            inputs = await self._open_inputs(due, session)
            outputs = await self._open_outputs(due, session)
        except StageAtFault as fault:
            if not session.is_whole(due):  # What was asked for is not there any more, by our own doing.
                return _result(due, session, Outcome.NOT_AUDITABLE, "its history was cropped meanwhile")
            return _result(due, session, Outcome.FAIL, str(fault), fault.peer_id)
        except InVain as vain:
            return _result(due, session, vain.outcome, str(vain), vain.owner)
        opening = _opening(due, session, inputs, outputs)
        return await self._judge(due, session, opening)

    async def _judge(self, due: DueAudit, session: AuditedSession, opening: Opening) -> AuditResult:
        if self.judge is None and self.ask is None:
            return _result(due, session, Outcome.INCONCLUSIVE, "it is opened as it was signed; nobody has run it again")
        try:
            verdict = await self._verdict(opening)
        except Exception as error:  # Whatever a judge raises, it has not judged.
            logger.warning("a chunk could not be judged", exc_info=True)
            verdict = Verdict(Outcome.INCONCLUSIVE, f"it could not be judged: {error}")
        unjudged = _result(due, session, Outcome.INCONCLUSIVE, "", "", opening)
        return judged(unjudged, verdict)

    async def _verdict(self, opening: Opening) -> Verdict:
        if self.judge is not None:
            verdict = await until_cancelled(self.judge, opening)
            if self.ask is None or verdict.measured is not None or verdict.outcome is not Outcome.INCONCLUSIVE:
                return verdict
        assert self.ask is not None
        return await self.ask(opening)

    async def _open_inputs(self, due: DueAudit, session: AuditedSession) -> Given:
        """Return what went in at all positions up to the chunk's end."""
        end, places = due.leaf.first + _length(due), [tile.place for tile in due.tiles]
        known = self._inputs.pop((session.session, due.place), None)
        if known is None or known.places != places[: len(known.places)]:
            known = _Inputs(_new_log(session, due))
        if known.log.length < end:
            await self._more_inputs(known.log, due, session, end)
        first = known.checked
        wrong = await asyncio.to_thread(first_wrong, due.tiles[first:], due.taken[first:], known.log)
        if wrong is not None:
            if not due.previous:  # Our own log has been cropped.
                raise InVain(Outcome.NOT_AUDITABLE, "its history was cropped meanwhile")
            raise StageAtFault(due.previous, f"opens other bytes of chunk {wrong.index} than it has signed for")
        known.checked, known.places = len(places), places
        self._inputs[session.session, due.place] = known
        if len(self._inputs) > _MAX_INPUTS:
            self._inputs.popitem(last=False)
        return await asyncio.to_thread(_given, known.log, 0)

    async def _more_inputs(self, log: StepLog, due: DueAudit, session: AuditedSession, end: int) -> None:
        if due.previous:
            await self._ask(due.previous, session, log, 0, end)
            return
        own = session.log
        at_once = max(1, MAX_OPENING_BYTES // log.position_bytes)
        while log.length < end:
            tokens = min(at_once, end - log.length)
            if own is None or own.length < log.length + tokens:
                raise InVain(Outcome.NOT_AUDITABLE, "its history was cropped meanwhile")
            shape, _, payload = own.piece(log.length, tokens)
            log.append_history(shape, payload)
            await asyncio.sleep(0)

    async def _open_outputs(self, due: DueAudit, session: AuditedSession) -> tuple[Given, ...]:
        """Return what came out at the chunk's positions."""
        if due.outputs is not None:
            given = sha256(b"".join(part.payload for part in due.outputs)).digest()
            if given != due.leaf.given:
                raise StageAtFault(due.peer_id, f"gave other bytes for chunk {due.leaf.index} than it has signed for")
            return due.outputs
        first, tile = due.leaf.first, due.tiles[-1]
        log = StepLog(session.session, session.codec, session.hidden_size, tile.rows, tile.end - first)
        await self._ask(due.peer_id, session, log, first, tile.end)
        if await asyncio.to_thread(digest_of, tile, log, first) != due.leaf.given:
            raise StageAtFault(due.peer_id, f"opens other bytes of chunk {due.leaf.index} than it has signed for")
        return (_given(log, first),)

    async def _ask(self, peer_id: str, session: AuditedSession, log: StepLog, offset: int, end: int) -> None:
        """Have a stage open positions; ask again while it does not answer.

        Args:
            peer_id: the stage's.
            session: which.
            log: takes them.
            offset: position that it begins with.
            end: one past the last position.

        Raises:
            StageAtFault: it does not open what it must have, or something else.
            InVain: it cannot be asked, or has no time.
        """
        last, hung_up = InVain(Outcome.INCONCLUSIVE, "it was not asked", peer_id), 0
        for pause_s in (*(() if peer_id in self._at_fault else PAUSES_S), None):
            is_held = session.is_held(peer_id)
            try:
                await self._ask_once(peer_id, session, log, Reveal(session.session, offset + log.length, end))
            except InVain as vain:
                last = vain
            except NotAnswered as refusal:
                last, hung_up = InVain(Outcome.INCONCLUSIVE, str(refusal), peer_id), hung_up + is_held
                if hung_up >= _MAX_HUNG_UP:
                    raise StageAtFault(peer_id, "does not open what it has signed for: it does not answer") from None
            else:
                return
            if last.outcome is not Outcome.INCONCLUSIVE or pause_s is None:
                break
            await asyncio.sleep(pause_s)
        raise last

    async def _ask_once(self, peer_id: str, session: AuditedSession, log: StepLog, asked: Reveal) -> None:
        size = log.position_bytes
        if not session.may_ask(peer_id, (asked.end - asked.first) * size, asked.end * size):
            raise InVain(Outcome.NOT_AUDITABLE, "the stage has opened as much of this session as it must")
        is_held = session.is_held(peer_id)
        try:
            await fetch(self._dial, session.stages[peer_id].stage, asked, log)
        except NotAnswered:
            raise
        except Refused as refusal:
            if refusal.code == "busy":
                raise InVain(Outcome.INCONCLUSIVE, str(refusal), peer_id) from refusal
            if is_held:
                reason = f"does not open what it has signed for ({refusal.code})"
                raise StageAtFault(peer_id, reason) from refusal
            raise InVain(Outcome.NOT_AUDITABLE, "it is not kept any more") from refusal
        except RemoteError as error:
            raise StageAtFault(peer_id, f"opens something else than it was asked for: {error}") from error
        except (DhtError, UnavailableError) as error:
            raise InVain(Outcome.INCONCLUSIVE, str(error), peer_id) from error


def _new_log(session: AuditedSession, due: DueAudit) -> StepLog:
    rows = due.tiles[0].rows
    if due.previous or session.log is None:
        return StepLog(session.session, session.codec, session.hidden_size, rows, MAX_LENGTH)
    return StepLog(session.session, session.log.codec, session.log.width, rows, MAX_LENGTH)


def _given(log: StepLog, first: int) -> Given:
    (rows, tokens, width), codec, payload = log.piece(0, log.length)
    return Given(first, codec, (rows, tokens, width), payload)


def _length(due: DueAudit) -> int:
    return due.tiles[-1].end - due.leaf.first


def _opening(due: DueAudit, session: AuditedSession, inputs: Given, outputs: tuple[Given, ...]) -> Opening:
    audited = session.stages[due.peer_id]
    return Opening(
        manifest=session.manifest,
        stage=audited.stage,
        previous=due.previous,
        dtype=audited.dtype,
        profile=audited.deal.offer.profile,
        codec=session.codec,
        session=session.session,
        segment=due.leaf.segment,
        index=due.leaf.index,
        first=due.leaf.first,
        end=due.tiles[-1].end,
        left_padding=session.left_padding,
        thin=session.thin,
        inputs=inputs,
        outputs=outputs,
        leaves=due.leaves,
        receipt=due.receipt,
        offer=audited.deal.body,
        offer_signature=audited.deal.signature,
        accept_signature=audited.agreement,
        headers={tile.place: bytes(tile.headers) for tile in due.tiles},
    )


def _result(
    due: DueAudit, session: AuditedSession, outcome: Outcome, why: str, owner: str = "", opening: Opening | None = None
) -> AuditResult:
    return AuditResult(due.peer_id, session.session, due.leaf.segment, due.leaf.index, outcome, why, owner, opening)
