"""What one client has agreed on with whom: offers, lanes, and where it signs. Runs in the client's event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom

from dht.domains import Domain
from dht.errors import DhtError
from dht.identity import Identity, verify
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.lane_table import FreeLane
from dht.receipts.ledger import Ledger
from dht.receipts.reservation_table import UnsignedEnd
from dht.records import Envelope, Kind
from dht.rules import Rules
from dht.work import Receipt, Slot, WorkKind
from node.agreement.checkpoint import Checkpoint
from node.agreement.consumer import ConsumerAccount
from node.agreement.offers import ConsumerLane, ConsumerLanes, Offer, is_accepted, padding_digest, profile_digest
from node.client.route import Stage
from node.errors import CannotSign, LocalError
from node.receipt_desk import ReceiptDesk

logger = logging.getLogger(__name__)

DISTRUST_EPOCHS = 10
"""How long a server is used only where there is no other after it has not signed for its work as it should."""


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
        self._desk = ReceiptDesk(identity, ledger)
        self._clock = clock
        self._lanes = ConsumerLanes(SystemRandom())

    async def take_lanes(self) -> None:
        """Go on with the lanes of an earlier process of this identity."""
        epoch, own = self.rules.epoch_of(self._clock()), self._desk.own

        def take(held: Ledger) -> list[tuple[FreeLane, list[Receipt]]]:
            return [(lane, _signed_in(held, own, lane, epoch)) for lane in held.take_lanes(own)]

        try:
            for free, signed in await self._desk.ask(take):
                lane = ConsumerLane(free.number, {(made.epoch, made.work_kind): made for made in signed})
                self._lanes.give_back(lane, free.provider, (free.manifest, free.start, free.end, free.profile))
        except DhtError as error:
            logger.warning("lanes are drawn anew: %s", error)

    async def close(self) -> None:
        """Wait until the ledger has taken everything, and put lanes that may be taken again into it."""
        await self._desk.drained()
        free = [FreeLane(provider, *terms, lane.number) for provider, terms, lane in self._lanes.free()]
        await self._desk.noted(lambda held: held.put_lanes(self._desk.own, free))

    def offer(
        self,
        session: bytes,
        manifest: bytes,
        codec: str,
        stage: Stage,
        max_tokens: int,
        left_padding: Sequence[int] = (),
    ) -> Deal:
        """Make an offer to the server of ``stage``, for what its session is opened with."""
        profile = profile_digest(stage.weights, codec)
        terms = (manifest, stage.start, stage.end, profile)
        lane = self._lanes.take(stage.peer_id, terms)
        own, now_s = self._identity.peer_id, int(self._clock())
        offer = Offer(session, own, stage.peer_id, *terms, padding_digest(left_padding), lane.number, max_tokens, now_s)
        body = offer.to_body()
        return Deal(offer, lane, body, self._identity.sign(Domain.OFFER, body))

    def account(self, deal: Deal) -> ConsumerAccount:
        """Return the account of a deal that was accepted."""
        return ConsumerAccount(
            deal.offer, deal.lane, self.rules, sign=self._identity.sign, verify=verify, reserve=self._reserve
        )

    def _reserve(self, slot: Slot, seq: int) -> None:
        try:
            taken = self._desk.reserve(slot, seq)
        except DhtError as error:
            raise CannotSign(
                f"This client cannot sign for what it is served: {error} Or open the model with receipts=False."
            ) from error
        if taken != seq:
            raise LocalError(f"Number {seq} of that lane was signed with before.")

    def expect(self, deal: Deal, kind: WorkKind) -> None:
        """Prepare for signatures for work of a kind, so that they need not wait for the disk."""
        epoch = self.rules.epoch_of(self._clock())
        self._desk.expect(Slot(deal.offer.provider, self._desk.own, epoch, deal.lane.number, kind))

    def keep(self, checkpoint: Checkpoint, signatures: Sequence[bytes]) -> None:
        """Put receipts that both have signed into the ledger, without waiting."""
        signed = zip(checkpoint.receipts, checkpoint.signatures, signatures, strict=True)
        self._desk.keep(Envelope(Kind.RECEIPT, body, tuple(pair)).to_bytes() for body, *pair in signed)

    def end(self, deal: Deal) -> None:
        """Note that a session has ended with everything signed: its lane may be taken again."""
        self._lanes.give_back(deal.lane, deal.offer.provider, deal.offer.terms)

    def note_unsigned(self, deal: Deal, tokens: int) -> None:
        """Note that a session has ended in which a server has not signed for so many tokens."""
        t, own = int(self._clock()), self._desk.own
        end = UnsignedEnd(deal.offer.provider, peer_provides=True, manifest=deal.offer.manifest, amount=tokens, t=t)
        self._desk.note(lambda held: held.note_unsigned_end(own, end))

    @property
    def distrust_s(self) -> float:
        """For how long who did not sign as it should is not trusted, s."""
        return DISTRUST_EPOCHS * float(self.rules.epoch_s)

    def distrust(self, provider: str) -> None:
        """Remember, also for later processes, that a server did not sign for its work as it should."""
        own = self._desk.own
        self._desk.note(lambda held: held.change_unsigned(own, provider, 1))

    async def distrusted(self) -> dict[str, float]:
        """Return the servers that are remembered so, and for how much longer, s."""
        own, now_s = self._desk.own, self._clock()
        try:
            since = await self._desk.ask(lambda held: held.standings_since(own, int(now_s - self.distrust_s)))
        except DhtError as error:
            logger.warning("it is not known who did not sign before: %s", error)
            return {}
        return {peer: min(self.distrust_s, t + self.distrust_s - now_s) for peer, t in since.items()}

    def forget_lanes(self, provider: str) -> None:
        """Draw new lanes for a server from now on: it does not know those of before any more."""
        self._lanes.forget(provider)

    async def drained(self) -> None:
        """Wait until the ledger has taken everything."""
        await self._desk.drained()


def _signed_in(held: Ledger, own: str, lane: FreeLane, epoch: int) -> list[Receipt]:
    """Return the newest receipts of a lane of this epoch and the one before."""
    slots = [
        Slot(lane.provider, own, each, lane.number, kind) for each in (max(0, epoch - 1), epoch) for kind in WorkKind
    ]
    found = [held.newest_of(own, slot) for slot in slots]
    return [signed.record for signed in found if signed is not None and isinstance(signed.record, Receipt)]
