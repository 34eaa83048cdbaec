"""What binds one session at this server: commitments to its bytes, and an account that its client signs for.

    allow() ──> take() ──> compute ──> give(), count() ──> checkpoint ──> client
                                                               cosigned() <──┘ ──> ledger

The shell around ``commitment.stage`` and ``agreement.provider``: it has the clock, signs at the server's desk, and
waits for signatures where what was served and not signed for has reached its bound. Runs in the event loop. It knows
no stream: what is to be sent to the client goes through a function that is passed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Protocol, TypeAlias

from dht.domains import Domain
from dht.identity import verify
from dht.work import Slot, WorkKind
from node.agreement.checkpoint import Cosign as CosignBody
from node.agreement.exposure import COSIGN_TIMEOUT_S, Standing, kind_of
from node.agreement.offers import Lane, accept
from node.agreement.provider import ProviderAccount
from node.commitment.chunks import Chunk
from node.commitment.stage import StageCommitment
from node.errors import Refused, UnavailableError
from node.receipt_desk import ReceiptDesk
from node.serve.computation import Output
from node.wire import Checkpoint, Cosign, Open, Sendable, Step, Voucher

logger = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[Sendable], Awaitable[None]]
"""Sends a frame to the session's client; raises UnavailableError where it is gone."""

LAST_SIGNATURES_S = 2.0
"""How long a session that ends waits for what is still to be signed, s."""
_LOOK_S = 0.25
_REST_S = 1.0
"""When nothing was counted for so long, its client may sign for what was."""


class Agreements(Protocol):
    """What a contract needs of all those of its server: ``Contracts``."""

    desk: ReceiptDesk

    def of(self, consumer: str) -> Set[Contract]:
        """Return the agreements about a consumer's open sessions."""

    def forget(self, contract: Contract) -> None:
        """Note that a session is not open any more."""

    def reserve(self, slot: Slot, seq: int) -> int:
        """Write down a number before it is signed with."""

    def standing(self, consumer: str) -> Standing:
        """Return how the consumer of an open session stands."""

    async def end(self, lane: Lane, account: ProviderAccount, *, is_ours: bool) -> None:
        """Note how a session has ended."""


class Contract:
    """The agreement about one session. Made by ``contracts.Contracts.begin``; ended by ``close``."""

    def __init__(
        self,
        contracts: Agreements,
        opened: Open,
        lane: Lane,
        account: ProviderAccount,
        signed_tokens: int,
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self.consumer = lane.offer.consumer
        """Peer id of the client."""
        self.agreement = accept(opened.offer, contracts.desk.sign)
        """The server's signature over the offer."""
        self._contracts = contracts
        self._opened = opened
        self._lane = lane
        self._account = account
        self._signed_before = signed_tokens
        self._tell = tell
        self._clock = clock
        is_new_place = opened.steps > 0 or opened.segment > 0
        self._commitment = StageCommitment(
            opened.session,
            opened.codec,
            verify,
            previous="" if opened.previous == lane.offer.consumer else opened.previous,
            segment=opened.segment,
            steps_left=opened.sent - opened.steps if is_new_place else None,
        )
        self._steps = opened.steps
        """Number of the last step that was counted."""
        self._has_news = asyncio.Event()
        """Set by every co-signature and voucher."""
        self._is_closed = False
        self.is_given_up = False
        """Whether the client has left it unsigned while it wanted others to go on."""
        self._asked_s: float | None = None
        """Since when a checkpoint has been without its answer."""
        self._is_leaving = False
        """Whether the client has been asked to take the session elsewhere: every step may be the last one here."""
        self._counted_s = time.monotonic()
        """When something was counted last."""
        self._expected: set[WorkKind] = set()
        """Kinds of work for which numbers have been written ahead."""

    # Steps. Those of one session interleave with those of others, so what most of them need touches little.

    def has_room(self, step: Step) -> bool:
        """Say whether a step may be run without asking ``allow``."""
        return not self.is_given_up and self._account.has_room(kind_of(step), step.shape[0] * step.shape[1])

    @property
    def may_be_due(self) -> bool:
        """Whether ``check`` is to be asked after a step; what is due by the clock waits for whoever asks it then."""
        return self._is_leaving or not self._account.is_in_block

    async def allow(self, step: Step) -> None:
        """Wait until a step may be run.

        Raises:
            Refused: the client does not sign for what it was served.
            UnavailableError: the session has ended, or the client is gone.
        """
        while self.is_given_up or not self._can_run(step):
            if self._is_closed:
                raise UnavailableError("The session has ended.")
            if self.is_given_up:
                raise _unsigned()
            await self.check()
            await self._press_others()
            if self._account.has_waited_too_long(time.monotonic()) and not self._give_up_late_ones():
                raise _unsigned()
            await self._news(_LOOK_S)

    def _can_run(self, step: Step) -> bool:
        kind, tokens = kind_of(step), step.shape[0] * step.shape[1]
        all_open = self._contracts.of(self.consumer)
        if len(all_open) > 1:
            others = sum(contract.exposure for contract in all_open if contract is not self)
            signed_tokens = max(contract.signed_tokens for contract in all_open)
        else:
            others, signed_tokens = 0, self.signed_tokens
        most = self._contracts.standing(self.consumer).cap_of_all(signed_tokens)
        return self._account.can_run(kind, tokens, time.monotonic(), others=others, most=most)

    @property
    def exposure(self) -> int:
        """What was served and may still be signed for, in sixteenths of a token."""
        return 0 if self.is_given_up else self._account.exposure

    @property
    def signed_tokens(self) -> int:
        """Tokens that the client had signed for when the session began, and in it."""
        return self._signed_before + self._account.signed_tokens

    @property
    def is_signed_for(self) -> bool:
        """Whether the client has signed for anything of this session."""
        return self._account.signed_tokens > 0

    @property
    def is_late(self) -> bool:
        """Whether the client was asked for signatures long ago."""
        if self._asked_s is None or self.is_given_up:
            return False
        return time.monotonic() - self._asked_s > COSIGN_TIMEOUT_S - 2 * _LOOK_S

    def give_up(self) -> None:
        """Expect no more signatures, and run no more steps."""
        self.is_given_up = True

    def _give_up_late_ones(self) -> bool:
        """Give up other sessions that the client does not sign for, lost ones perhaps; say whether there were any."""
        late = [other for other in self._contracts.of(self.consumer) if other is not self and other.is_late]
        for other in late:
            other.give_up()
        return bool(late)

    async def _press_others(self) -> None:
        """Ask for the signatures of the client's other sessions, too: all of them together have a bound."""
        others = [contract for contract in self._contracts.of(self.consumer) if contract is not self]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await asyncio.gather(*(other.check(is_last=True) for other in others), return_exceptions=True)

    def take(self, step: Step) -> None:
        """Commit to a step's input.

        Raises:
            StageAtFault: the stage before has not signed for it; nothing has changed here.
        """
        self._commitment.take(step, step.segment)

    def give(self, step: Step, output: Output, codec: str) -> list[Voucher]:
        """Commit to the output of the step that was taken last; return what is to be pushed before it."""
        payload, shape = output
        closed = self._commitment.give(step, step.segment, codec, shape, payload)
        return self._vouchers(closed) if closed else []

    def count(self, step: Step, num_bytes_out: int, known_positions: int) -> None:
        """Count a step whose output was handed on.

        Args:
            step: as it came.
            num_bytes_out: of the payload that was handed on; 0 where it was not.
            known_positions: of each row, those that were taken from a prefix.
        """
        (rows, tokens, _), kind = step.shape, kind_of(step)
        self._steps += not step.replay
        self._counted_s = time.monotonic()
        if kind not in self._expected:
            self._expect(kind)
        self._account.count(
            kind,
            rows * tokens,
            len(step.payload),
            num_bytes_out,
            self._clock(),
            known_tokens=rows * known_positions,
        )

    def _expect(self, kind: WorkKind) -> None:
        """Have numbers written ahead for what is counted of a kind now, so that its signature need not wait."""
        self._expected.add(kind)
        offer = self._lane.offer
        self._contracts.desk.expect(Slot(offer.provider, offer.consumer, self._lane.epoch, offer.lane, kind))

    # Repairs.

    def adopt(self, previous: str, segment: int, sent: int, taken: int) -> None:
        """Note that steps come from another stage; ``sent`` and ``taken`` count steps, by the client and here."""
        before = "" if previous == self._lane.offer.consumer else previous
        self._commitment.adopt(before, segment, max(0, sent - taken))

    def relink(self, segment: int) -> None:
        """Note that everything is sent again, in a segment of its own, to a new next stage."""
        self._commitment.relink(segment)

    def resend(self, step: Step) -> list[Voucher]:
        """Take a step that is sent again; return what is to be pushed before it."""
        return self._vouchers(self._commitment.resend(step))

    def vouch(self, voucher: Voucher) -> None:
        """Take what the stage before has signed for."""
        self._commitment.vouch(voucher.segment, voucher.index, voucher.signature)
        self._has_news.set()

    def _vouchers(self, chunks: Sequence[Chunk]) -> list[Voucher]:
        session, sign = self._opened.session, self._contracts.desk.sign
        return [
            Voucher(session, chunk.segment, chunk.index, sign(Domain.CHUNK, chunk.voucher_body(session)))
            for chunk in chunks
        ]

    # Signatures.

    async def check(self, *, is_last: bool = False) -> None:
        """Send a checkpoint if one is due, or the session is at rest.

        Raises:
            UnavailableError: the client is gone.
            Refused: no number is left to sign with, or the ledger does not take it.
        """
        if (made := self._due(is_last=is_last or self._is_leaving or self._is_at_rest)) is not None:
            await self._tell(made)

    @property
    def _is_at_rest(self) -> bool:
        return time.monotonic() - self._counted_s > _REST_S and not self._account.is_asking

    def leave(self) -> Checkpoint | None:
        """Ask for signatures after every step from now on; return the checkpoint that is due now, if one is."""
        self._is_leaving = True
        return self._due(is_last=True)

    def _due(self, *, is_last: bool) -> Checkpoint | None:
        if not self._account.is_due(self._clock(), is_last=is_last):
            return None
        self._account.reserve()  # First: what has been reported once is not reported again.
        leaves, root = self._commitment.report()
        made = self._account.checkpoint(leaves, root, self._steps)
        self._asked_s = self._asked_s or time.monotonic()
        return Checkpoint(self._opened.session, made.to_body())

    def cosigned(self, frame: Cosign) -> None:
        """Take the client's signatures.

        Raises:
            RemoteError: they are malformed, or not what they should be.
        """
        completed = self._account.cosigned(CosignBody.from_body(frame.body))
        self._contracts.desk.keep(envelope.to_bytes() for envelope in completed)
        self._asked_s = time.monotonic() if self._account.is_asking else None
        for contract in self._contracts.of(self.consumer):
            contract.hear()

    def seal(self) -> list[Voucher]:
        """End the last chunk, because the session does; return what is to be pushed."""
        return self._vouchers(self._commitment.seal())

    async def settle(self, may_be_vouched_for: Callable[[], bool]) -> None:
        """Ask for the last signatures and wait for them, for a while.

        Args:
            may_be_vouched_for: whether the stage before can still sign for what it sent last: it cannot where this one
                was replaced and steps go elsewhere.

        Raises:
            UnavailableError: the client is gone.
        """
        until_s = time.monotonic() + LAST_SIGNATURES_S
        while self._commitment.awaits_voucher and time.monotonic() < until_s - LAST_SIGNATURES_S / 2:
            if not may_be_vouched_for():
                break
            await self._news(_LOOK_S)
        await self.check(is_last=True)
        while not self._account.is_settled and time.monotonic() < until_s:
            await self._news(_LOOK_S)

    def hear(self) -> None:
        """Note that the client has signed for something, here or in another session, or the stage before has gone."""
        self._has_news.set()

    async def _news(self, timeout_s: float) -> None:
        self._has_news.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_news.wait()
        except TimeoutError:
            pass

    async def close(self, *, is_ours: bool = False) -> None:
        """Note that the session has ended; doing so twice is fine.

        Args:
            is_ours: this server has ended it, so that its client is not to blame for what it has not signed.
        """
        if not self._is_closed:
            self._is_closed = True
            self._contracts.forget(self)
            self._has_news.set()
            await self._contracts.end(self._lane, self._account, is_ours=is_ours and not self.is_given_up)


def _unsigned() -> Refused:
    return Refused("unsigned", "What was done is not signed for; sign checkpoints as they come.")
