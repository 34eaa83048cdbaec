"""A server's contract and its client's, against each other without a network: what one tells the other it hears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dht.identity import Identity
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.rules import Rules
from node.client.contract import SessionContract
from node.client.dealings import Dealings
from node.client.route import Stage
from node.serve.contract import Contract
from node.serve.contracts import Contracts
from node.wire import Checkpoint, Open, Result, Step

RULES = Rules(epoch_s=2**20)
MANIFEST = bytes(range(32))
HIDDEN = 4


class Dealt:
    """One open session.

    Args:
        contracts: of the server.
        dealings: of the client.
        client: who it is.
        server: who that is.
        signs: whether the client answers checkpoints.
    """

    def __init__(
        self, contracts: Contracts, dealings: Dealings, client: Identity, server: Identity, *, signs: bool = True
    ) -> None:
        self.contracts, self.dealings = contracts, dealings
        self._client, self._server, self.signs = client, server, signs
        self._position = 0
        self.theirs: Contract
        self.ours: SessionContract
        self.session = bytes(16)

    async def open(self, session: bytes = bytes(16)) -> Dealt:
        self.session, own = session, self._client.peer_id
        stage = Stage(self._server.peer_id, 0, 2, (), weights="float32")
        deal = self.dealings.offer(session, MANIFEST, "float32", stage, 1024)
        opened = Open(
            session=session, manifest=MANIFEST, start=0, end=2, batch=1, left_padding=(), max_length=1024,
            codec="float32", previous=own, next="", next_addresses=(), offer=deal.body, offer_signature=deal.signature,
        )  # fmt: skip
        self.theirs = await self.contracts.begin(opened, own, "float32", self._told)
        assert deal.is_accepted(self.theirs.agreement)
        self.ours = SessionContract(self.dealings, session, "float32", HIDDEN, None, [deal])
        return self

    async def _told(self, frame: Any) -> None:
        assert isinstance(frame, Checkpoint)
        answer, other = self.ours.checkpoint(0, frame.body)
        assert other is None
        if answer is not None and self.signs:
            self.theirs.cosigned(answer)

    async def step(self, tokens: int = 1) -> None:
        """Run a step at the server, and hand its result on."""
        shape, payload = (1, tokens, HIDDEN), bytes(16 * tokens)
        step = self.ours.sent(Step(self.session, self._position, shape, "float32", payload))
        self._position += tokens
        await self.theirs.allow(step)
        self.theirs.take(step)
        self.theirs.give(step, (memoryview(payload), shape), "float32")
        self.theirs.count(step, len(payload), 0)
        self.ours.answered(step, Result(self.session, step.position, shape, "float32", payload))
        await self.theirs.check()

    async def close(self, **options: bool) -> None:
        """End the session as both sides do."""
        self.ours.seal()
        self.theirs.seal()
        await self.theirs.check(is_last=True)
        await self.theirs.close(**options)
        self.ours.close()
        await self.dealings.drained()
        await self.contracts.drained()


def contracts(identity: Identity, ledger: Ledger, clock: Callable[[], float]) -> Contracts:
    return Contracts(identity, AsyncLedger(ledger), RULES, clock)


def dealings(identity: Identity, ledger: Ledger, clock: Callable[[], float]) -> Dealings:
    return Dealings(identity, AsyncLedger(ledger), RULES, clock)
