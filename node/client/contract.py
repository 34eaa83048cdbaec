"""What a client has agreed on with the servers of its sessions: it checks what they commit to, and signs for it.

The shell around ``commitment.chain`` and ``agreement.consumer``; ``dealings`` has the key and the ledger. Runs in the
client's event loop. It knows no stream: ``chain`` hands it what goes and what comes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from dht.identity import verify
from dht.records import Envelope, Kind
from dht.work import WorkKind
from node.agreement.checkpoint import Checkpoint
from node.agreement.checkpoint import Cosign as CosignBody
from node.agreement.consumer import ConsumerAccount
from node.agreement.exposure import kind_of
from node.client.audit_plan import AuditPlan, DueAudit, Found
from node.client.dealings import Deal, Dealings
from node.client.recheck import Kept, Recent
from node.client.thin_terms import ThinTerms
from node.commitment.chain import ChainCheck, RetiredStage
from node.commitment.chunks import WINDOW
from node.errors import StageAtFault
from node.wire import ID_BYTES, LOGIT_BYTES, Cosign, Payload, Result, Step, payload_bytes

_MAX_NOTED = 32
_MAX_NOTED_BYTES = 2**14
"""A longer payload is worked off at once."""
_Charge: TypeAlias = tuple[WorkKind, int, int, int]
"""What a step is for a stage: a kind of work, tokens, what it takes for it and the most that it gives, bytes."""


@dataclass(frozen=True, slots=True)
class Handed:
    """What stages are given that take the place of others."""

    answered: int
    """Steps that had results."""
    rows: int
    """Of the history."""
    length: int
    """Positions of each row in the history; 0: there is none."""
    waiting: tuple[Step, ...]
    """Steps that are sent again, in order."""


class _Sent(NamedTuple):
    step: Step
    payload: Payload
    t: float
    """Unix time, s."""


class _Answered(NamedTuple):
    step: Step
    result: Result
    payload: Payload
    at_s: float
    """Monotonic time."""


@dataclass(slots=True)
class _Party:
    deal: Deal
    account: ConsumerAccount
    began: int = 0
    """Steps that had been answered when it took its place."""
    retired: RetiredStage | None = None
    """What it has reported, where another has taken its place."""

    @property
    def num_signed(self) -> int:
        """Steps that it has signed for, or has no part in."""
        return max(self.began, self.account.num_signed)


class SessionContract:
    """One session's agreements with the servers of its route, in order.

    Steps and results of decoding are only noted as they come, and worked off some tens at once: between two of them
    others have had the core and its caches, and one alone costs six times as much as one of many.

    Args:
        dealings: of the client.
        session: its id.
        codec: how its hidden states travel.
        hidden_size: of the model.
        thin: what the ends of the route do; None: nothing.
        deals: accepted, one for each stage.
        audits: what is to be audited; None: nothing.
    """

    def __init__(
        self,
        dealings: Dealings,
        session: bytes,
        codec: str,
        hidden_size: int,
        thin: ThinTerms | None,
        deals: Sequence[Deal],
        audits: AuditPlan | None = None,
    ) -> None:
        self._audits = audits
        self._found: list[Found] = []
        """What is due of them, or cannot be done."""
        self._dealings = dealings
        self._session = session
        self._codec = codec
        self._hidden_size = hidden_size
        self._thin = thin
        self._check = ChainCheck(session, codec, [deal.offer.provider for deal in deals], verify)
        self._parties = [_Party(deal, dealings.account(deal)) for deal in deals]
        self._retired: list[_Party] = []
        """Whose place others have taken, and who may still ask for signatures."""
        self._noted: list[_Sent | _Answered] = []
        self._fault: StageAtFault | None = None
        """Found while that was worked off, and not raised yet."""
        self._waiting: deque[int] = deque()
        """Segments of the steps that are not answered."""
        self.num_sent = 0
        """Steps sent so far."""
        self._num_answered = 0
        self._recent = Recent()
        self.is_due = False
        """Whether a stage was to ask for signatures when the last result was worked off, and none has since."""
        self._charged: tuple[object, ...] = ()
        """Form of the last step that was sent, and ..."""
        self._charges: list[_Charge] = []
        """... what it is for each stage."""

    @property
    def next_segment(self) -> int:
        """The segment in which the next repair begins."""
        return self._check.segment + 1

    def sent(self, step: Step) -> Step:
        """Note a new step; return it with its segment."""
        segment = self._check.segment
        if segment:
            step = replace(step, segment=segment)
        self.num_sent += 1
        self._note(_Sent(step, step.payload, time.time()))
        return step

    def _note(self, noted: _Sent | _Answered) -> None:
        """Keep a step that was sent, or its result, for later; whoever made it may compute in its payload meanwhile."""
        is_small = len(noted.payload) <= _MAX_NOTED_BYTES
        is_kept = is_small or isinstance(noted, _Answered)
        self._noted.append(noted._replace(payload=bytes(noted.payload)) if is_kept else noted)
        if not is_small or len(self._noted) >= _MAX_NOTED:
            self._work_off()

    def _work_off(self) -> None:
        all_noted, self._noted = self._noted, []
        for noted in all_noted:
            if isinstance(noted, _Sent):
                self._charge_all(*noted)
                continue
            try:
                self._check_result(*noted)
            except StageAtFault as fault:
                self._fault = self._fault or fault

    def _charge_all(self, step: Step, payload: Payload, now_s: float) -> None:
        segment = self._check.segment
        self._check.sent(step, segment, payload)
        if self._audits is not None:
            self._audits.sent(step, segment)
        self._recent.sent(step)
        self._waiting.append(segment)
        form = (step.shape, len(step.payload), step.logits_to_keep)
        if form != self._charged:  # While a session decodes, it is not.
            self._charged, self._charges = form, [self._charge(place, step) for place in range(len(self._parties))]
            for party, (kind, *_) in zip(self._parties, self._charges, strict=True):
                self._dealings.expect(party.deal, kind)
        for party, charge in zip(self._parties, self._charges, strict=True):
            party.account.sent(self._check.num_sent, *charge, now_s)

    def _charge(self, place: int, step: Step) -> _Charge:
        rows, tokens, _ = step.shape
        return (kind_of(step), rows * tokens, *self._sizes(place, step))

    def _sizes(self, place: int, step: Step) -> tuple[int, int]:
        """Return what a stage takes for a step, and the most that it gives, bytes."""
        rows, tokens, _ = step.shape
        hidden = payload_bytes(self._codec, (rows, tokens, self._hidden_size))
        bytes_in = len(step.payload) if place == 0 else hidden
        if place + 1 < len(self._parties) or self._thin is None:
            return bytes_in, hidden
        answered = rows * step.logits_to_keep
        return bytes_in, answered * (ID_BYTES if self._thin.sampling else self._thin.top * (ID_BYTES + LOGIT_BYTES))

    def answered(self, step: Step, result: Result) -> None:
        """Note the result of the oldest step without one.

        Raises:
            StageAtFault: the last stage has given something else than it committed to, now or some steps ago.
        """
        self._note(_Answered(step, result, result.payload, time.monotonic()))
        self._raise_fault()

    def _check_result(self, step: Step, result: Result, payload: Payload, now_s: float) -> None:
        tokens = step.shape[0] * step.shape[1]
        are_due = [party.account.answered(tokens, now_s) for party in self._parties]
        self.is_due = any(are_due)
        segment = self._waiting.popleft()
        self._num_answered += 1
        if self._thin is None:
            self._recent.answered(Kept(self._num_answered, result.position, result.shape, payload, result.shape[1]))
        if self._audits is not None:
            self._audits.answered(step, result.codec, result.shape, payload)
        self._check.answered(step, segment, result.codec, result.shape, payload)

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def is_settled(self, place: int) -> bool:
        """Say whether everything that a stage was sent is signed for."""
        self._work_off()
        return self._parties[place].account.is_settled

    def overdue(self) -> list[int]:
        """Return the places of stages that should have asked for signatures and have not."""
        self._work_off()
        now_s = time.monotonic()
        return [place for place, party in enumerate(self._parties) if party.account.is_overdue(now_s)]

    def checkpoint(self, place: int, body: bytes) -> tuple[Cosign | None, StageAtFault | None]:
        """Check what a stage reports; return what to answer, and the fault of another stage that was found.

        Raises:
            StageAtFault: the stage has not kept to what it agreed to.
            FrameError: the checkpoint is malformed.
            CannotSign: the ledger does not take what would be signed.
        """
        self._work_off()
        party, made = self._parties[place], Checkpoint.from_body(body)
        answer, other = party.account.repeated(made), None
        if answer is None and party.account.is_next(made):
            root, other = self._root(place, made)
            answer = self._signed(party, made, root)
            if answer is not None and self._audits is not None:
                self._found += self._audits.signed(place, made.leaves, _envelope(made, answer))
            self.is_due = False  # Of others that will be seen again with the next results.
            self._recent.signed(min(party.num_signed for party in self._parties) - WINDOW)
        if other is None:
            other, self._fault = self._fault, None
        return Cosign(self._session, answer.to_body()) if answer is not None else None, other

    def last_words(self, deal: Deal, body: bytes) -> Cosign | None:
        """Check what a stage reports whose place another has taken; return what to answer.

        Raises:
            StageAtFault, FrameError, CannotSign: as ``checkpoint``.
        """
        party = next((party for party in self._retired if party.deal is deal), None)
        made = Checkpoint.from_body(body)
        if party is None or party.retired is None or not party.account.is_next(made):
            return None
        answer = self._signed(party, made, party.retired.check(made.leaves))
        return Cosign(self._session, answer.to_body()) if answer is not None else None

    def _signed(self, party: _Party, made: Checkpoint, root: bytes) -> CosignBody | None:
        answer = party.account.check(made, root, time.time())
        if answer is not None:
            self._dealings.keep(made, answer.signatures)
        return answer

    def take_found(self) -> list[Found]:
        """Return the audits that are due since the last time, and those that cannot be carried out."""
        found, self._found = self._found, []
        return found

    def is_whole(self, due: DueAudit) -> bool:
        """Say whether nothing of what an audit needs has been cropped since it was due."""
        self._work_off()
        return self._audits is not None and self._audits.is_whole(due)

    def _root(self, place: int, made: Checkpoint) -> tuple[bytes, StageAtFault | None]:
        try:
            return self._check.check(place, made.leaves, made.steps), None
        except StageAtFault as fault:
            if fault.peer_id == self._parties[place].deal.offer.provider:
                raise
            return self._check.root_of(place), fault

    def unsigned(self, place: int, *, is_at_fault: bool = False) -> tuple[Kept, ...]:
        """Return the results that the stage at a place has a part in and has not signed for as it should.

        Args:
            place: of the stage.
            is_at_fault: what it has signed for last may be false, too.
        """
        self._work_off()
        party = self._parties[place]
        signed = party.num_signed - (WINDOW if is_at_fault else 0)
        return self._recent.since(max(party.began, signed))

    def resent(self, step: Step) -> None:
        """Note a step that the client sends again itself."""
        self._work_off()
        self._check.resent(step)

    def replaced(self, first: int, last: int, deals: Sequence[Deal], handed: Handed) -> None:
        """Note that other stages have taken the place of those from ``first`` to ``last``.

        Args:
            first: place of the first one.
            last: place of the last one.
            deals: accepted, of the new ones.
            handed: what they are given.
        """
        self._work_off()
        for place in range(first, last + 1):
            self._parties[place].retired = self._check.retired(place)
        self._check.replaced(first, last, [deal.offer.provider for deal in deals])
        if self._audits is not None:
            self._audits.replaced(first, last, [deal.offer.provider for deal in deals])
        self._retired += self._parties[first : last + 1]
        new = [_Party(deal, self._dealings.account(deal), handed.answered) for deal in deals]
        self._parties[first : last + 1] = new
        for place, party in enumerate(new, first):
            if handed.length:
                self._hand_history(place, first + len(new), handed)
            for number, step in enumerate(handed.waiting, handed.answered + 1):
                party.account.sent(number, *self._charge(place, step), time.time())
        self._charged = ()

    def _hand_history(self, place: int, end: int, handed: Handed) -> None:
        rows, length = handed.rows, handed.length
        ids = place == 0 and self._thin is not None
        hidden = payload_bytes(self._codec, (rows, length, self._hidden_size))
        bytes_in = rows * length * ID_BYTES if ids else hidden
        bytes_out = hidden if place + 1 < end else 0
        self._parties[place].account.handed_history(handed.answered, rows * length, bytes_in, bytes_out, time.time())

    def seal(self) -> None:
        """Note that the session ends at rest.

        Raises:
            StageAtFault: as in ``answered``.
        """
        self._work_off()
        self._raise_fault()
        self._check.seal()

    def close(self) -> None:
        """Give back the lanes in which everything is signed for, and note who has not signed; once is enough."""
        self._work_off()
        self._end([*self._parties, *self._retired])
        self._parties, self._retired = [], []

    def let_go(self, deal: Deal) -> None:
        """Note that a stage whose place another has taken has said goodbye."""
        self._end([party for party in self._retired if party.deal is deal])
        self._retired = [party for party in self._retired if party.deal is not deal]

    def _end(self, parties: Sequence[_Party]) -> None:
        for party in parties:
            if party.account.is_settled:
                self._dealings.end(party.deal)
            elif party.account.unsigned_tokens:
                self._dealings.note_unsigned(party.deal, party.account.unsigned_tokens)


def _envelope(made: Checkpoint, answer: CosignBody) -> bytes:
    """Return the last receipt of a checkpoint, signed by both; the root is the same in all."""
    signatures = made.signatures[-1], answer.signatures[-1]
    return Envelope(Kind.RECEIPT, made.receipts[-1], signatures).to_bytes()
