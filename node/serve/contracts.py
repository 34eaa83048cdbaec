"""What one server has agreed on with all its clients: it reads their offers, and knows which sessions are open of each.

Runs in the event loop. What binds one session is in ``contract``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set

from dht.errors import DhtError, SeqsSpent
from dht.identity import Identity, verify
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.receipts.reservation_table import UnsignedEnd
from dht.rules import Rules
from dht.work import Slot, WorkKind
from node.agreement.exposure import UNITS, Standing, exposure_of, tokens_between_checkpoints
from node.agreement.offers import Lane, LaneBook, Offer, padding_digest, profile_digest, read_offer
from node.agreement.provider import ProviderAccount
from node.errors import Refused
from node.receipt_desk import ReceiptDesk
from node.serve.contract import Contract, Tell
from node.wire import Open

logger = logging.getLogger(__name__)


class Contracts:
    """What one server has agreed on with whom.

    Args:
        identity: signs.
        ledger: keeps what both have signed.
        rules: of the swarm.
        clock: unix time, s.
    """

    def __init__(
        self, identity: Identity, ledger: AsyncLedger, rules: Rules, clock: Callable[[], float] = time.time
    ) -> None:
        self.desk = ReceiptDesk(identity, ledger)
        self._rules = rules
        self._clock = clock
        self._lanes = LaneBook()
        self._open: dict[str, set[Contract]] = {}
        """By consumer."""
        self._unsigned_ends: dict[str, int] = {}
        """What the ledger holds, or will, against the consumers of open sessions."""

    async def begin(self, opened: Open, client: str, weights: str, tell: Tell) -> Contract:
        """Agree on a session.

        Args:
            opened: what its client asks for.
            client: its peer id.
            weights: what the weights are held in, as it is announced.
            tell: sends frames to the client.

        Raises:
            Refused: there is no offer, or not one that can be taken.
        """
        wanted = Offer(
            session=opened.session,
            consumer=client,
            provider=self.desk.own,
            manifest=opened.manifest,
            start=opened.start,
            end=opened.end,
            profile=profile_digest(weights, opened.codec, opened.adapter),
            padding=padding_digest(opened.left_padding),
            lane=0,
            max_tokens=opened.batch * opened.max_length,
            t=0,
        )
        lane, account, standing, signed_tokens = await self.agree(wanted, opened.offer, opened.offer_signature)
        contract = Contract(self, opened, lane, account, signed_tokens, tell, self._clock)
        self._unsigned_ends.setdefault(client, standing.unsigned_ends)
        self._open.setdefault(client, set()).add(contract)
        return contract

    async def agree(self, wanted: Offer, body: bytes, signature: bytes) -> tuple[Lane, ProviderAccount, Standing, int]:
        """Take an offer, if it can be taken; ``end`` is due afterwards.

        Args:
            wanted: what it must say; its lane and time do not count.
            body: of the offer, as it came.
            signature: of the consumer.

        Returns:
            Where the work is counted, how; how the consumer stands, and tokens that it has signed for so far.

        Raises:
            Refused: there is no offer, or not one that can be taken.
        """
        if not body:
            raise Refused("bad_offer", "This server counts what it does: open with an offer, or use a newer client.")
        client, now_s = wanted.consumer, self._clock()
        offer = read_offer(body, signature, wanted, verify, now_s)
        epoch = self._rules.epoch_of(now_s)
        signed_tokens, was_used, (num_unsigned, since_s) = await self._history(client, epoch, offer.lane)
        standing = Standing(self._unsigned_ends[client] if client in self._open else num_unsigned)
        if (wait_s := standing.wait_s(now_s - since_s)) > 0:
            raise Refused(
                "unsigned",
                f"{num_unsigned} of your sessions here have ended unsigned; come back in {wait_s:.0f} s, and sign.",
                retryable=True,
                retry_after_s=wait_s,
            )
        self._lanes.forget(epoch - 1)
        lane = self._lanes.open(offer, epoch, was_used=was_used)
        account = ProviderAccount(
            lane,
            self._rules,
            cap=standing.cap(signed_tokens),
            every=tokens_between_checkpoints(signed_tokens),
            sign=self.desk.sign,
            verify=verify,
            reserve=self.reserve,
        )
        return lane, account, standing, signed_tokens

    async def _history(self, client: str, epoch: int, lane: int) -> tuple[int, bool, tuple[int, int]]:
        """Ask the ledger how much a client has signed for, whether it knows the lane, and of unsigned ends."""
        own = self.desk.own
        slots = [Slot(own, client, epoch, lane, kind) for kind in WorkKind]
        try:
            return await self.desk.ask(
                lambda held: (
                    _worth_of(held.history_of(own, client)),
                    any(held.newest_of(own, slot) is not None for slot in slots),
                    held.standing(own, client),
                )
            )
        except DhtError as error:
            raise _unable(error) from error

    def of(self, consumer: str) -> Set[Contract]:
        """Return the agreements about a consumer's open sessions, as they are at any time."""
        return self._open.get(consumer, frozenset())

    def standing(self, consumer: str) -> Standing:
        """Return how a consumer of open sessions stands: those that are given up count as ended, for all the others."""
        given_up = sum(contract.is_given_up for contract in self.of(consumer))
        return Standing(self._unsigned_ends.get(consumer, 0) + given_up)

    def forget(self, contract: Contract) -> None:
        """Note that a session is not open any more."""
        of_consumer = self._open.get(contract.consumer, set())
        of_consumer.discard(contract)
        if not of_consumer:
            self._open.pop(contract.consumer, None)

    def reserve(self, slot: Slot, seq: int) -> int:
        """Write down a number before it is signed with.

        Raises:
            Refused: there is none; nothing can be signed.
        """
        try:
            return self.desk.reserve(slot, seq)
        except DhtError as error:
            raise _unable(error) from error

    async def end(self, lane: Lane, account: ProviderAccount, *, is_ours: bool) -> None:
        """Note how a session has ended; ``is_ours``: this server has ended it, so its consumer is not to blame."""
        is_settled = account.is_settled
        self._lanes.close(lane, is_settled=is_settled)
        own, consumer = self.desk.own, lane.offer.consumer
        before = Standing(self._unsigned_ends.get(consumer, 0))
        change = before.change(is_settled=is_settled, signed_tokens=account.signed_tokens, cap=account.cap)
        if change > 0 and is_ours:
            change = 0
        if consumer in self._open:
            self._unsigned_ends[consumer] = before.unsigned_ends + change
        else:
            self._unsigned_ends.pop(consumer, None)
        end = UnsignedEnd(
            consumer,
            peer_provides=False,
            manifest=lane.offer.manifest,
            amount=account.unsigned_tokens,
            t=int(self._clock()),
        )

        def note(held: Ledger) -> None:
            if not is_settled:
                held.note_unsigned_end(own, end)
            if change:
                held.change_unsigned(own, consumer, change)

        await self.desk.noted(note)

    async def drained(self) -> None:
        """Wait until the ledger has taken everything."""
        await self.desk.drained()


def _worth_of(amounts: Mapping[WorkKind, int]) -> int:
    """Return how many decoded tokens it would have cost to earn the trust that signed work earns."""
    return sum(exposure_of(kind, amount) for kind, amount in amounts.items() if kind is not WorkKind.RELAY) // UNITS


def _unable(error: DhtError) -> Refused:
    """Return what a client is told where the ledger does not do what a session needs."""
    logger.warning("a session cannot be counted: %s", error)
    if isinstance(error, SeqsSpent):
        return Refused(
            "lane", "That lane has no numbers left in this epoch; draw another and open again.", retryable=True
        )
    return Refused("failed", "This server cannot keep receipts now; choose another.", retryable=True)
