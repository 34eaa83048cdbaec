"""What a client has agreed on with the servers of its sessions: it checks what they commit to, and signs for it.

The shell around ``commitment.chain`` and ``agreement.consumer``: it has the clock, the key and the ledger. Runs in the
client's event loop. It knows no stream: ``chain`` hands it what goes and what comes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from random import SystemRandom
from typing import Any, TypeAlias

from dht.domains import Domain
from dht.errors import DhtError
from dht.identity import Identity, verify
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.reservation_table import UnsignedEnd
from dht.records import Envelope, Kind
from dht.rules import Rules
from dht.work import Slot, WorkKind
from node.agreement.checkpoint import Checkpoint
from node.agreement.consumer import ConsumerAccount
from node.agreement.exposure import kind_of
from node.agreement.offers import ConsumerLane, ConsumerLanes, Offer, is_accepted, profile_digest
from node.client.recheck import Kept, Recent
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.commitment.chain import ChainCheck
from node.commitment.chunks import WINDOW
from node.errors import LocalError, StageAtFault
from node.wire import ID_BYTES, LOGIT_BYTES, Cosign, Payload, Result, Step, payload_bytes

logger = logging.getLogger(__name__)

_MAX_NOTED = 32
_MAX_NOTED_BYTES = 2**14
"""A longer payload is worked off at once."""
_Noted: TypeAlias = tuple[Step, Result | None, Payload, float]
"""A step; its result, where that has come; the payload of the one or the other; when it went or came."""
_Charge: TypeAlias = tuple[WorkKind, int, int, int]
"""What a step is for a stage: a kind of work, tokens, what it takes for it and the most that it gives, bytes."""


@dataclass(frozen=True, slots=True)
class Deal:
    """What is offered to one server in one session."""

    offer: Offer
    lane: ConsumerLane
    body: bytes
    """The offer's."""
    signature: bytes

    def is_accepted(self, agreement: bytes) -> bool:
        """Say whether the server has signed that it takes the offer."""
        return is_accepted(self.offer, agreement, verify)


class Dealings:
    """What one client has agreed on with whom.

    Args:
        identity: signs.
        ledger: keeps what both have signed.
        rules: of the swarm.
        clock: unix time, s.
    """

    def __init__(
        self, identity: Identity, ledger: AsyncLedger, rules: Rules, clock: Callable[[], float] = time.time
    ) -> None:
        self.rules = rules
        self._identity = identity
        self._ledger = ledger
        self._clock = clock
        self._lanes = ConsumerLanes(SystemRandom())
        self._appending: set[asyncio.Task[None]] = set()

    def offer(self, session: bytes, manifest: bytes, codec: str, stage: Stage, max_tokens: int) -> Deal:
        """Make an offer to the server of ``stage``."""
        profile = profile_digest(stage.weights, codec)
        terms = (manifest, stage.start, stage.end, profile)
        lane = self._lanes.take(stage.peer_id, terms)
        own, now_s = self._identity.peer_id, int(self._clock())
        offer = Offer(session, own, stage.peer_id, *terms, lane.number, max_tokens, now_s)
        body = offer.to_body()
        return Deal(offer, lane, body, self._identity.sign(Domain.OFFER, body))

    def account(self, deal: Deal) -> ConsumerAccount:
        """Return the account of a deal that was accepted."""
        return ConsumerAccount(
            deal.offer, deal.lane, self.rules, sign=self._identity.sign, verify=verify, reserve=self._reserve
        )

    def _reserve(self, slot: Slot, seq: int) -> None:
        held, own = self._ledger.ledger, self._identity.peer_id
        taken = held.reserve_in_memory(own, slot, seq) or held.reserve(own, slot, seq)
        if taken != seq:
            raise LocalError(f"Number {seq} of that lane was signed with before.")

    def keep(self, checkpoint: Checkpoint, signatures: Sequence[bytes]) -> None:
        """Put receipts that both have signed into the ledger, without waiting."""
        for body, by_provider, by_us in zip(checkpoint.receipts, checkpoint.signatures, signatures, strict=True):
            envelope = Envelope(Kind.RECEIPT, body, (by_provider, by_us)).to_bytes()
            self._later(self._append(envelope))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)

    async def _append(self, envelope: bytes) -> None:
        try:
            await self._ledger.append(self._identity.peer_id, envelope)
        except DhtError as error:
            logger.warning("a receipt was not kept: %s", error)

    def end(self, deal: Deal) -> None:
        """Note that a session has ended with everything signed: its lane may be taken again."""
        self._lanes.give_back(deal.lane, deal.offer.provider, deal.offer.terms)

    def note_unsigned(self, deal: Deal, tokens: int) -> None:
        """Note that a session has ended in which a server has not signed for so many tokens."""
        t = int(self._clock())
        end = UnsignedEnd(deal.offer.provider, peer_provides=True, manifest=deal.offer.manifest, amount=tokens, t=t)
        self._later(self._note(end))

    async def _note(self, end: UnsignedEnd) -> None:
        try:
            await self._ledger.note_unsigned_end(self._identity.peer_id, end)
        except DhtError as error:
            logger.warning("who has not signed was not noted: %s", error)

    def forget_lanes(self, provider: str) -> None:
        """Draw new lanes for a server from now on: it does not know those of before any more."""
        self._lanes.forget(provider)

    async def drained(self) -> None:
        """Wait until the ledger has taken everything."""
        await asyncio.gather(*self._appending, return_exceptions=True)


@dataclass(slots=True)
class _Party:
    deal: Deal
    account: ConsumerAccount
    began: int = 0
    """Steps that had been answered when it took its place."""

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
    """

    def __init__(
        self,
        dealings: Dealings,
        session: bytes,
        codec: str,
        hidden_size: int,
        thin: ThinTerms | None,
        deals: Sequence[Deal],
    ) -> None:
        self._dealings = dealings
        self._session = session
        self._codec = codec
        self._hidden_size = hidden_size
        self._thin = thin
        self._check = ChainCheck(session, codec, [deal.offer.provider for deal in deals], verify)
        self._parties = [_Party(deal, dealings.account(deal)) for deal in deals]
        self._noted: list[_Noted] = []
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
        self._note(step, None, step.payload, time.time())
        return step

    def _note(self, step: Step, result: Result | None, payload: Payload, t: float) -> None:
        """Keep a step that was sent, or its result, for later; whoever made it may compute in its payload meanwhile."""
        is_small = len(payload) <= _MAX_NOTED_BYTES
        is_kept = is_small or result is not None
        self._noted.append((step, result, bytes(payload) if is_kept else payload, t))
        if not is_small or len(self._noted) >= _MAX_NOTED:
            self._work_off()

    def _work_off(self) -> None:
        noted, self._noted = self._noted, []
        for step, result, payload, t in noted:
            if result is None:
                self._charge_all(step, payload, t)
                continue
            try:
                self._check_result(step, result, payload, t)
            except StageAtFault as fault:
                self._fault = self._fault or fault

    def _charge_all(self, step: Step, payload: Payload, now_s: float) -> None:
        segment = self._check.segment
        self._check.sent(step, segment, payload)
        self._recent.sent(step)
        self._waiting.append(segment)
        form = (step.shape, len(step.payload), step.logits_to_keep)
        if form != self._charged:  # While a session decodes, it is not.
            self._charged, self._charges = form, [self._charge(place, step) for place in range(len(self._parties))]
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
        self._note(step, result, result.payload, time.monotonic())
        self._raise_fault()

    def _check_result(self, step: Step, result: Result, payload: Payload, now_s: float) -> None:
        tokens = step.shape[0] * step.shape[1]
        are_due = [party.account.answered(tokens, now_s) for party in self._parties]
        self.is_due = any(are_due)
        segment = self._waiting.popleft()
        self._num_answered += 1
        if self._thin is None:
            self._recent.answered(Kept(self._num_answered, result.position, result.shape, payload, result.shape[1]))
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
        """
        self._work_off()
        party, made = self._parties[place], Checkpoint.from_body(body)
        answer, other = party.account.repeated(made), None
        if answer is None:
            root, other = self._root(place, made)
            answer = party.account.check(made, root, time.time())
            if answer is not None:
                self._dealings.keep(made, answer.signatures)
                self.is_due = False  # Of others that will be seen again with the next results.
                self._recent.signed(min(party.num_signed for party in self._parties) - WINDOW)
        other, self._fault = other or self._fault, None
        return Cosign(self._session, answer.to_body()) if answer is not None else None, other

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

    def replaced(
        self,
        first: int,
        last: int,
        deals: Sequence[Deal],
        *,
        answered: int,
        rows: int,
        history: int,
        waiting: Sequence[Step],
    ) -> None:
        """Note that other stages have taken the place of those from ``first`` to ``last``.

        Args:
            first: place of the first one.
            last: place of the last one.
            deals: accepted, of the new ones.
            answered: steps that have results.
            rows: of the history.
            history: positions of each row in the history that the new ones are given.
            waiting: steps that are sent again, in order.
        """
        self._work_off()
        self._check.replaced(first, last, [deal.offer.provider for deal in deals])
        self._end(self._parties[first : last + 1])
        self._parties[first : last + 1] = [_Party(deal, self._dealings.account(deal), answered) for deal in deals]
        for place in range(first, first + len(deals)):
            if history:
                self._hand_history(place, first + len(deals), answered, rows, history)
            for number, step in enumerate(waiting, answered + 1):
                self._parties[place].account.sent(number, *self._charge(place, step), time.time())
        self._charged = ()

    def _hand_history(self, place: int, end: int, answered: int, rows: int, history: int) -> None:
        ids = place == 0 and self._thin is not None
        hidden = payload_bytes(self._codec, (rows, history, self._hidden_size))
        bytes_in = rows * history * ID_BYTES if ids else hidden
        account = self._parties[place].account
        account.handed_history(answered, rows * history, bytes_in, hidden if place + 1 < end else 0, time.time())

    def seal(self) -> None:
        """Note that the session ends at rest.

        Raises:
            StageAtFault: as in ``answered``.
        """
        self._work_off()
        self._raise_fault()
        self._check.seal()

    def close(self) -> None:
        """Give back the lanes in which everything is signed for, and note who has not signed."""
        self._work_off()
        self._end(self._parties)

    def _end(self, parties: Sequence[_Party]) -> None:
        for party in parties:
            if party.account.is_settled:
                self._dealings.end(party.deal)
            elif party.account.unsigned_tokens:
                self._dealings.note_unsigned(party.deal, party.account.unsigned_tokens)


def blamed(fault: StageAtFault, stages: Sequence[Stage]) -> list[int]:
    """Return the places of the stage that is to blame."""
    return [place for place, stage in enumerate(stages) if stage.peer_id == fault.peer_id]
