"""A provider's account of one session: what it counts, when it asks for signatures, and when it stops. Pure.

    can_run() ──> step ──> count() ──> is_due()? ──> checkpoint() ─────────> consumer
        ^                                                                       │
        └── exposure falls <── cosigned() <──────────── co-signatures ──────────┘

Checkpoints are numbered and answered one by one; one that is repeated has the same bytes. A sequence number is
reserved, by a callback that writes it down, before anything is signed with it. State does not grow with the session.

Decoding is allowed in blocks of a few tokens, in which nothing can become due but by the clock, so that most steps cost
an addition or two. What is left of a block counts as exposure until the block is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dht.identity import peer_id_to_bytes
from dht.records import Envelope, Kind
from dht.rules import Rules
from dht.work import MAX_AMOUNT_PER_S, Receipt, Slot, WorkKind, work_of
from node.agreement.checkpoint import Checkpoint, Cosign
from node.agreement.exposure import COSIGN_TIMEOUT_S, UNITS, exposure_of
from node.agreement.offers import Lane, Sign, Tally, Verify
from node.commitment.chunks import Leaf
from node.errors import LocalError, SessionError

Reserve: TypeAlias = Callable[[Slot, int], int]
"""Returns the number to sign with, at least the one it is given; it must be written down, on disk, by then."""

MAX_BLOCK = 16
"""Tokens of a block."""
MAX_UNANSWERED = 32
"""Checkpoints without an answer; exposure allows fewer."""


@dataclass(slots=True)
class _Unanswered:
    checkpoint: Checkpoint
    exposure: int
    """Of what it counts and the ones before it do not."""
    tokens: int
    """Of the same."""


class ProviderAccount:
    """What one provider counts in one session.

    Args:
        lane: opened for the session's offer.
        rules: of the swarm.
        cap: most exposure, in sixteenths of a token (``Standing.cap``).
        every: tokens between checkpoints (``tokens_between_checkpoints``).
        sign: with the provider's key.
        verify: checks the consumer's signatures.
        reserve: called before each signature over a receipt.
    """

    def __init__(
        self, lane: Lane, rules: Rules, *, cap: int, every: int, sign: Sign, verify: Verify, reserve: Reserve
    ) -> None:
        self.signed_tokens = 0
        """What the consumer has signed for in this session, in tokens that cost as much as decoded ones."""
        self._lane = lane
        self._offer = lane.offer
        self._consumer_id = peer_id_to_bytes(lane.offer.consumer)
        self._rules = rules
        self.cap = cap
        """Most exposure, in sixteenths of a token."""
        self._every = every
        self._sign = sign
        self._verify = verify
        self._reserve = reserve
        self._begun: set[tuple[int, WorkKind]] = set()
        """Slots in which the session has been counted as one."""
        self._changed: set[tuple[int, WorkKind]] = set()
        self._reserved: dict[tuple[int, WorkKind], int] = {}
        """Numbers that the next receipts have."""
        self._since_tokens = self._since_counted = self._since_exposure = self._last_cost = 0
        self._unanswered_exposure = self._signed_exposure = 0
        self._block_left = self._block_tokens = self._block_in = self._block_out = 0
        """Of the open block: tokens that may still be run; tokens and bytes that were, and are in no counter yet."""
        self._block_first_s = self._block_last_s = self._block_until_s = 0.0
        """When they were run, and when the epoch ends."""
        self._number = 0
        self._unanswered: deque[_Unanswered] = deque()
        self._waits_since_s: float | None = None

    @property
    def exposure(self) -> int:
        """What has been served and is not signed for, in sixteenths of a token."""
        return self._since_exposure + self._unanswered_exposure + (self._block_left + self._block_tokens) * UNITS

    @property
    def unsigned_tokens(self) -> int:
        """Tokens that were counted and are not signed for."""
        return self._since_counted + self._block_tokens + sum(entry.tokens for entry in self._unanswered)

    @property
    def is_settled(self) -> bool:
        """Whether everything that was counted is signed by both."""
        return not self._changed and not self._unanswered and not self._block_tokens

    @property
    def is_in_block(self) -> bool:
        """Whether nothing can have become due since ``is_due`` was asked, but by the clock."""
        return self._block_left > 0 and self._block_tokens > 0

    def has_room(self, kind: WorkKind, tokens: int) -> bool:
        """Say whether a step fits into the open block, so that nobody need ask ``can_run``."""
        return tokens <= self._block_left and kind is WorkKind.DECODE

    def can_run(self, kind: WorkKind, tokens: int, now_s: float, *, others: int = 0, most: int | None = None) -> bool:
        """Say whether a step may be run now. Where not, a checkpoint is due if none is on the way.

        Args:
            kind: of the step.
            tokens: rows times positions.
            now_s: monotonic or unix time, s; the same as in ``has_waited_too_long``.
            others: exposure of the consumer's other sessions.
            most: exposure of all its sessions together; None: what each of them may have.
        """
        self._close_block()
        cost, exposure = exposure_of(kind, tokens), self.exposure
        is_possible = not exposure or exposure + cost <= self.cap
        if most is not None and exposure + others:
            is_possible = is_possible and exposure + others + cost <= most
        if is_possible:
            self._waits_since_s = None
            if kind is WorkKind.DECODE:
                left = self.cap - exposure if most is None else min(self.cap - exposure, most - exposure - others)
                self._block_left = max(0, min(MAX_BLOCK, (left - cost) // UNITS, self._every - self._since_tokens - 1))
        elif self._waits_since_s is None:
            self._waits_since_s = now_s
        return is_possible

    def has_waited_too_long(self, now_s: float) -> bool:
        """Say whether a step has waited for signatures for too long: the session ends as refused, ``unsigned``."""
        return self._waits_since_s is not None and now_s - self._waits_since_s > COSIGN_TIMEOUT_S

    def count(
        self, kind: WorkKind, tokens: int, bytes_in: int, bytes_out: int, now_s: float, *, known_tokens: int = 0
    ) -> None:
        """Count a step that has been run.

        Args:
            kind: of work.
            tokens: rows times positions.
            bytes_in: its payload.
            bytes_out: the payload that was handed on for it.
            now_s: unix time, s.
            known_tokens: of ``tokens``, those that were taken from a prefix and not computed.
        """
        if self.has_room(kind, tokens) and not known_tokens and self._is_in_block(now_s):
            self._block_last_s = max(self._block_last_s, now_s)
            self._block_left -= tokens
            self._block_tokens += tokens
            self._block_in += bytes_in
            self._block_out += bytes_out
            self._last_cost = tokens * UNITS
            return
        self._close_block()
        self._count(kind, tokens - known_tokens, bytes_in, bytes_out, now_s, now_s)
        self._last_cost = exposure_of(kind, tokens - known_tokens)
        self._since_tokens += known_tokens

    def _is_in_block(self, now_s: float) -> bool:
        if not self._block_tokens:
            self._block_first_s = self._block_last_s = now_s
            self._block_until_s = self._rules.start_of(max(self._lane.epoch, self._rules.epoch_of(now_s)) + 1)
        return now_s < self._block_until_s

    def _close_block(self) -> None:
        """Let ``can_run`` be asked again, and count what was run."""
        self._block_left = 0
        if self._block_tokens:
            tokens, bytes_in, bytes_out = self._block_tokens, self._block_in, self._block_out
            self._block_tokens = self._block_in = self._block_out = 0
            self._count(WorkKind.DECODE, tokens, bytes_in, bytes_out, self._block_first_s, self._block_last_s)

    def _count(self, kind: WorkKind, tokens: int, bytes_in: int, bytes_out: int, first_s: float, last_s: float) -> None:
        self._lane.epoch = max(self._lane.epoch, self._rules.epoch_of(last_s))  # Clocks are set back; epochs are not.
        slot = (self._lane.epoch, kind)
        tally = self._lane.tallies.get(slot)
        if tally is None:
            tally = self._lane.tallies[slot] = Tally(int(first_s), int(first_s))
        if slot not in self._begun:
            self._begun.add(slot)
            tally.sessions += 1
        tally.amount += tokens
        tally.bytes_in += bytes_in
        tally.bytes_out += bytes_out
        tally.t_last = max(tally.t_last, int(last_s))
        self._changed.add(slot)
        self._since_tokens += tokens
        self._since_counted += tokens
        self._since_exposure += exposure_of(kind, tokens)

    def is_due(self, now_s: float, *, is_last: bool = False) -> bool:
        """Say whether a checkpoint is due: enough has been counted, the next step may not fit, or an epoch has ended.

        To be asked after every step that was counted, while a step waits, and about once a second.

        Args:
            now_s: unix time, s.
            is_last: the session ends, or moves on.
        """
        if self.is_in_block and not is_last and now_s < self._block_until_s:
            return False
        self._close_block()
        if not self._changed or len(self._unanswered) >= MAX_UNANSWERED:
            return False
        if (
            is_last
            or self._waits_since_s is not None
            or self._since_tokens >= self._every
            or self.exposure + max(UNITS, self._last_cost) > self.cap
        ):
            return True
        return min(self._changed)[0] < self._rules.epoch_of(now_s)

    def reserve(self) -> None:
        """Write the numbers of the next checkpoint ahead; what this raises leaves everything as it is."""
        self._close_block()
        for slot in self._changed - self._reserved.keys():
            self._reserved[slot] = self._reserve(self._where(slot), self._lane.tallies[slot].seq + 1)

    def _where(self, slot: tuple[int, WorkKind]) -> Slot:
        (epoch, kind), offer = slot, self._offer
        return Slot(offer.provider, offer.consumer, epoch, offer.lane, kind)

    def checkpoint(self, leaves: Sequence[Leaf], root: bytes, steps: int) -> Checkpoint:
        """Make the next checkpoint.

        Args:
            leaves: that the stage commits to since the last one.
            root: over all of them and those before.
            steps: number of the last step that was counted.
        """
        self.reserve()
        if not self._changed:
            raise LocalError("There is nothing to sign for.")
        receipts = [self._receipt(slot, root) for slot in sorted(self._changed)]
        bodies = tuple(receipt.to_body() for receipt in receipts)
        signatures = tuple(self._sign(Kind.RECEIPT, body) for body in bodies)
        self._number += 1
        made = Checkpoint(self._number, steps, tuple(leaves), bodies, signatures)
        self._unanswered.append(_Unanswered(made, self._since_exposure, self._since_counted))
        self._unanswered_exposure += self._since_exposure
        self._changed.clear()
        self._since_tokens = self._since_counted = self._since_exposure = 0
        return made

    @property
    def is_asking(self) -> bool:
        """Whether a checkpoint has no answer yet."""
        return bool(self._unanswered)

    def unanswered(self) -> tuple[Checkpoint, ...]:
        """Return the checkpoints without an answer, to be sent again as they were."""
        return tuple(entry.checkpoint for entry in self._unanswered)

    def cosigned(self, answer: Cosign) -> tuple[Envelope, ...]:
        """Take a consumer's answer; return the envelopes that it completes. One that is repeated completes nothing.

        Raises:
            SessionError: it is no answer to a checkpoint of this session, or not signed as it should be.
        """
        if not 1 <= answer.number <= self._number:
            raise SessionError(f"There is no checkpoint {answer.number} to sign for.")
        entry = next((entry for entry in self._unanswered if entry.checkpoint.number == answer.number), None)
        if entry is None:
            return ()
        made = entry.checkpoint
        is_signed = len(answer.signatures) == len(made.receipts) and all(
            self._verify(self._consumer_id, Kind.RECEIPT, body, signature)
            for body, signature in zip(made.receipts, answer.signatures, strict=True)
        )
        if not is_signed:
            raise SessionError(f"Checkpoint {answer.number} is not signed with the key of the session's client.")
        self._unanswered.remove(entry)
        self._unanswered_exposure -= entry.exposure
        self._waits_since_s = None
        self._signed_exposure += entry.exposure
        self.signed_tokens = self._signed_exposure // UNITS
        self._forget_past_epochs(made)
        pairs = zip(made.signatures, answer.signatures, strict=True)
        return tuple(Envelope(Kind.RECEIPT, body, pair) for body, pair in zip(made.receipts, pairs, strict=True))

    def _receipt(self, slot: tuple[int, WorkKind], root: bytes) -> Receipt:
        (epoch, kind), tally, offer = slot, self._lane.tallies[slot], self._offer
        tally.seq = self._reserved.pop(slot)
        return Receipt(
            provider=offer.provider,
            consumer=offer.consumer,
            epoch=epoch,
            lane=offer.lane,
            work_kind=kind,
            seq=tally.seq,
            manifest=offer.manifest,
            start=offer.start,
            end=offer.end,
            profile=offer.profile,
            sessions=tally.sessions,
            amount=tally.amount,
            work=work_of(kind, tally.amount, offer.start, offer.end),
            bytes_in=tally.bytes_in,
            bytes_out=tally.bytes_out,
            commitment=root,
            t_first=tally.t_first,
            t_last=max(tally.t_last, tally.t_first + tally.amount // MAX_AMOUNT_PER_S),
        )

    def _forget_past_epochs(self, answered: Checkpoint) -> None:
        """Drop the counters of epochs that are over and signed."""
        newest = max(epoch for epoch, _ in self._lane.tallies)
        waiting = {Receipt.from_body(body).epoch for entry in self._unanswered for body in entry.checkpoint.receipts}
        for slot in [slot for slot in self._lane.tallies if slot[0] < newest]:
            if slot[0] not in waiting and slot not in self._changed:
                del self._lane.tallies[slot]
                self._begun.discard(slot)
