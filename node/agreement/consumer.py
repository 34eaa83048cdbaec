"""A consumer's account of one stage in a session: what it has asked of it, and what it therefore signs. Pure.

    sent() ──> answered() ──> checkpoint ──> check(): counters, times, epoch, root ──> co-signatures
                    └──> is_overdue(): the stage does not ask for signatures

A provider may count less than was sent (what it knew of a prefix counts nothing), never more. What a checkpoint leaves
out is not counted later. Signing rises: the same checkpoint gives the same answer, and no number is signed twice.
State is bounded by what is on the way and not signed for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes
from dht.records import Kind
from dht.rules import MAX_SKEW_S, Rules
from dht.work import Receipt, Slot, WorkKind
from node.agreement.checkpoint import Checkpoint, Cosign
from node.agreement.exposure import CHECKPOINT_TIMEOUT_S, CHECKPOINT_TOKENS
from node.agreement.offers import ConsumerLane, Offer, Sign, Verify
from node.errors import StageAtFault

MAX_ANSWERS = 32
"""Answers kept for checkpoints that are sent again."""
MARK_TOKENS = 16
"""How exactly it is known when a token was answered: a mark is made after so many."""


class _Sent(NamedTuple):
    number: int
    kind: WorkKind
    tokens: int
    bytes_in: int
    bytes_out: int
    t: float


@dataclass(slots=True)
class _Own:
    """What was sent of one kind and is not signed for."""

    tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class ConsumerAccount:
    """What a client has asked of one stage.

    Args:
        offer: that the stage has accepted.
        lane: that the offer names.
        rules: of the swarm.
        sign: with the consumer's key.
        verify: checks the provider's signatures.
        reserve: writes down that a number is going to be signed with; called before each signature.
    """

    def __init__(
        self,
        offer: Offer,
        lane: ConsumerLane,
        rules: Rules,
        *,
        sign: Sign,
        verify: Verify,
        reserve: Callable[[Slot, int], None],
    ) -> None:
        self._offer = offer
        self._lane = lane
        self._rules = rules
        self._sign = sign
        self._verify = verify
        self._reserve = reserve
        self._provider_id = peer_id_to_bytes(offer.provider)
        self._sent: deque[_Sent] = deque()
        """Steps that no checkpoint has counted."""
        self._history, self._history_steps = _Own(), 0
        """What is left of the history that the stage was handed, and the number of the last step in it."""
        self._begun: set[tuple[int, WorkKind]] = set()
        """Slots in which the session has been counted as one."""
        self._number = self._steps = 0
        self._begins_s = float("inf")
        """When the first of what is not signed for was sent."""
        self._answers: dict[int, tuple[bytes, Cosign]] = {}
        self._answered_tokens = self._signed_tokens = 0
        """Of all steps so far. More may be signed for than is answered: a checkpoint has a way of its own."""
        self._marks: deque[tuple[int, float]] = deque()
        """After how many tokens a step was answered, and when, for those whose checkpoint is due and has not come."""
        self._next_mark = MARK_TOKENS

    @property
    def is_settled(self) -> bool:
        """Whether every step that was sent is signed for."""
        return not self._sent

    @property
    def unsigned_tokens(self) -> int:
        """Tokens that were answered and are in no checkpoint."""
        return max(0, self._answered_tokens - self._signed_tokens)

    @property
    def num_signed(self) -> int:
        """Number of the last step that is signed for."""
        return self._steps

    def sent(self, number: int, kind: WorkKind, tokens: int, bytes_in: int, bytes_out: int, now_s: float) -> None:
        """Note what the stage is given to do.

        Args:
            number: of the step.
            kind: of work.
            tokens: rows times positions.
            bytes_in: what the stage takes for it.
            bytes_out: what it gives.
            now_s: unix time, s.
        """
        self._sent.append(_Sent(number, kind, tokens, bytes_in, bytes_out, now_s))
        if now_s < self._begins_s:
            self._begins_s = now_s

    def handed_history(self, steps: int, tokens: int, bytes_in: int, bytes_out: int, now_s: float) -> None:
        """Note the history that a new stage is given, in pieces: it is prefill, whatever it was before.

        Args:
            steps: number of the last step in it.
            tokens: rows times positions.
            bytes_in: what the stage takes for it.
            bytes_out: what it gives: nothing, unless it hands the history on to another new stage.
            now_s: unix time, s.
        """
        self._history, self._history_steps = _Own(tokens, bytes_in, bytes_out), steps
        self._begins_s = min(self._begins_s, now_s)

    def answered(self, tokens: int, now_s: float) -> bool:
        """Note that a step has been answered, so that the stage has handed it on; say whether a checkpoint is due.

        Args:
            tokens: rows times positions.
            now_s: monotonic time, s; the same as in ``is_overdue``.
        """
        self._answered_tokens += tokens
        if self._answered_tokens >= self._next_mark:
            self._next_mark = self._answered_tokens + MARK_TOKENS
            if self._answered_tokens >= self._signed_tokens + CHECKPOINT_TOKENS:
                self._marks.append((self._answered_tokens, now_s))
        return bool(self._marks)

    def is_overdue(self, now_s: float) -> bool:
        """Say whether a checkpoint should have come and has not; the stage is then as good as lost.

        One that counts less than was answered when it was due does not help: who signs slowly is late, too.
        """
        return bool(self._marks) and now_s - self._marks[0][1] > CHECKPOINT_TIMEOUT_S

    def _forget_marks(self) -> None:
        while self._marks and self._marks[0][0] < self._signed_tokens + CHECKPOINT_TOKENS:
            self._marks.popleft()

    def check(self, checkpoint: Checkpoint, root: bytes, now_s: float) -> Cosign | None:
        """Check a checkpoint's receipts and sign them.

        Args:
            checkpoint: as it came.
            root: over the leaves that it, and those before it, have shown (``ChainCheck.check``).
            now_s: unix time, s.

        Returns:
            The answer; None for a checkpoint out of turn, which comes again.

        Raises:
            StageAtFault: something in it is not as it was.
        """
        if (answer := self.repeated(checkpoint)) is not None:
            return answer
        if not self.is_next(checkpoint):
            return None
        receipts = [self._read(*pair) for pair in zip(checkpoint.receipts, checkpoint.signatures, strict=True)]
        is_sound = len({receipt.slot for receipt in receipts}) == len(receipts) > 0
        self._demand(is_sound, "has no receipt in a checkpoint, or two for one slot")
        own = self._own_until(checkpoint.steps)
        for receipt in receipts:
            self._check_receipt(receipt, root, now_s)
            self._subtract(receipt, own[receipt.work_kind])
        if checkpoint.steps <= self._history_steps:  # The rest of it is still being computed.
            self._history = own[WorkKind.PREFILL]
        return self._answer(checkpoint, receipts)

    def is_next(self, checkpoint: Checkpoint) -> bool:
        """Say whether a checkpoint is the one that follows the last one that was signed for."""
        return checkpoint.number == self._number + 1

    def repeated(self, checkpoint: Checkpoint) -> Cosign | None:
        """Return the answer to a checkpoint that was answered before, if it is one.

        Raises:
            StageAtFault: it has changed since.
        """
        if checkpoint.number not in self._answers:
            return None
        body, answer = self._answers[checkpoint.number]
        self._demand(body == checkpoint.to_body(), f"has sent two different checkpoints {checkpoint.number}")
        return answer

    def _demand(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            raise StageAtFault(self._offer.provider, otherwise)

    def _read(self, body: bytes, signature: bytes) -> Receipt:
        try:
            receipt = Receipt.from_body(body)
        except BadRecord as error:
            raise StageAtFault(self._offer.provider, f"asks for a signature under no receipt: {error}") from error
        self._demand(self._verify(self._provider_id, Kind.RECEIPT, body, signature), "does not sign its own receipt")
        return receipt

    def _own_until(self, steps: int) -> dict[WorkKind, _Own]:
        """Take what was sent up to a step, by kind; return it."""
        self._demand(steps >= self._steps, "counts fewer steps than before")
        own = {kind: _Own() for kind in WorkKind}
        own[WorkKind.PREFILL], self._history = self._history, _Own()
        while self._sent and self._sent[0].number <= steps:
            sent = self._sent.popleft()
            self._signed_tokens += sent.tokens
            mine = own[sent.kind]
            mine.tokens += sent.tokens
            mine.bytes_in += sent.bytes_in
            mine.bytes_out += sent.bytes_out
        return own

    def _check_receipt(self, receipt: Receipt, root: bytes, now_s: float) -> None:
        offer, base = self._offer, self._base(receipt)
        parties = (receipt.provider, receipt.consumer, receipt.lane)
        self._demand(parties == (offer.provider, offer.consumer, offer.lane), "has a receipt for somebody else")
        terms = (receipt.manifest, receipt.start, receipt.end, receipt.profile)
        self._demand(terms == offer.terms, "has a receipt for other blocks or weights than were agreed on")
        self._demand(receipt.commitment == root, "has signed another root than that of its chunks")
        self._demand(receipt.objection(self._rules, now_s) is None, "has a receipt of the wrong epoch")
        self._demand(receipt.t_last <= now_s + MAX_SKEW_S, "is ahead of time; one of the clocks is wrong")
        first = self._begins_s if base is None else base.t_last
        self._demand(receipt.t_last >= min(first, now_s) - MAX_SKEW_S, "is behind time; one of the clocks is wrong")
        if base is None:
            self._demand(receipt.t_first >= min(first, now_s) - MAX_SKEW_S, "begins before the session")
            newest = max((epoch for epoch, kind in self._lane.signed if kind is receipt.work_kind), default=0)
            self._demand(receipt.epoch >= newest, "goes back to an epoch that is over")
        else:
            self._demand(receipt.t_first == base.t_first and receipt.seq > base.seq, "goes back in a lane")
        slot = (receipt.epoch, receipt.work_kind)
        sessions = (base.sessions if base else 0) + (slot not in self._begun)
        self._demand(receipt.sessions == sessions, f"counts {receipt.sessions} sessions where there were {sessions}")

    def _base(self, receipt: Receipt) -> Receipt | None:
        return self._lane.signed.get((receipt.epoch, receipt.work_kind))

    def _subtract(self, receipt: Receipt, own: _Own) -> None:
        """Take what a receipt adds from what was sent; neither may become negative."""
        self._demand(
            own.tokens > 0 or own.bytes_in > 0, f"counts tokens of {receipt.work_kind.name} where none were sent"
        )
        base = self._base(receipt)
        tokens = receipt.amount - (base.amount if base else 0)
        bytes_in = receipt.bytes_in - (base.bytes_in if base else 0)
        bytes_out = receipt.bytes_out - (base.bytes_out if base else 0)
        self._demand(0 <= tokens <= own.tokens, f"counts {tokens} tokens where {own.tokens} were sent")
        self._demand(0 <= bytes_in <= own.bytes_in, f"counts {bytes_in} bytes in where {own.bytes_in} were sent")
        self._demand(0 <= bytes_out <= own.bytes_out, f"counts {bytes_out} bytes out where there were {own.bytes_out}")
        own.tokens -= tokens
        own.bytes_in -= bytes_in
        own.bytes_out -= bytes_out

    def _answer(self, checkpoint: Checkpoint, receipts: list[Receipt]) -> Cosign:
        for receipt in receipts:
            self._reserve(receipt.slot, receipt.seq)
        answer = Cosign(checkpoint.number, tuple(self._sign(Kind.RECEIPT, body) for body in checkpoint.receipts))
        for receipt in receipts:
            slot = (receipt.epoch, receipt.work_kind)
            self._lane.signed[slot] = receipt
            self._begun.add(slot)
        self._forget(max(receipt.epoch for receipt in receipts))
        self._number, self._steps = checkpoint.number, checkpoint.steps
        self._answers[checkpoint.number] = (checkpoint.to_body(), answer)
        self._answers.pop(checkpoint.number - MAX_ANSWERS, None)
        self._forget_marks()
        self._begins_s = self._sent[0].t if self._sent else float("inf")
        return answer

    def _forget(self, epoch: int) -> None:
        """Drop what was signed in epochs that are over for longer than clocks can differ about it."""
        bound = self._rules.epoch_of(max(0.0, self._rules.start_of(epoch) - 2.0 * MAX_SKEW_S))
        for slot in [slot for slot in self._lane.signed if slot[0] < bound]:
            del self._lane.signed[slot]
            self._begun.discard(slot)
