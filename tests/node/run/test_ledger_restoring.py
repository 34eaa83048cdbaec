"""A node that serves has again from the DHT what its ledger has lost, and says so."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dht.errors import PeerUnreachable
from dht.ident import Ident, Role
from dht.identity import Identity
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.records import Envelope, seal
from dht.rules import Rules
from dht.testnet import testnet
from node.config import CLIENT_IDENTITY, IDENTITY, LEDGER
from node.run import ledger_restoring
from node.run.ledger_restoring import Loss, loss_of, restore
from node.run.receipt_keeping import ReceiptKeeping
from tests.dht.receipts.ledger_kit import spoil
from tests.dht.receipts.made import sealed

RULES = Rules(epoch_s=1000, window_epochs=8)
OTHER = Identity.ephemeral()
WITHIN_S = 30.0


class Home:
    """A server's home in a swarm that holds what its ids did and took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = Identity.load_or_create(path / IDENTITY)
        self.client = Identity.load_or_create(path / CLIENT_IDENTITY)
        self.given = [sealed(self.server, OTHER, RULES, epochs_ago=ago, lane=ago) for ago in range(3)]
        self.taken = [sealed(OTHER, self.client, RULES)]

    def fill(self) -> None:
        with Ledger.open(self.path / LEDGER) as ledger:
            ledger.repair(self.server.peer_id, [signed.envelope for signed in self.given])
            ledger.repair(self.client.peer_id, [signed.envelope for signed in self.taken])

    def held(self) -> set[bytes]:
        with Ledger.open_to_read(self.path / LEDGER) as ledger:
            return {signed.envelope for own in ledger.owners() for signed in ledger.newest(own)}

    async def holds(self, *wanted: bytes) -> bool:
        until_s = time.monotonic() + WITHIN_S
        while self.held() != set(wanted) and time.monotonic() < until_s:
            await asyncio.sleep(0.1)
        return self.held() == set(wanted)

    @property
    def envelopes_given(self) -> list[bytes]:
        return [signed.envelope for signed in self.given]

    @property
    def envelopes_taken(self) -> list[bytes]:
        return [signed.envelope for signed in self.taken]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@asynccontextmanager
async def serving(home: Home):
    """A node that serves, in a swarm that holds the home's receipts."""
    async with testnet(2, rules=RULES) as (founder, swarm):
        for signed in (*home.given, *home.taken):
            assert await founder.store(signed)
        epoch = RULES.epoch_of(time.time())
        assert await founder.store(seal(Ident(OTHER.peer_id, epoch, epoch, 0, Role.SERVER, ""), OTHER, rules=RULES))
        async with ReceiptKeeping(home.path, home.server, swarm, Role.SERVER) as keeping:
            yield keeping


def overwrite(path: Path, given: bytes) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)


def empty(path: Path, given: bytes) -> None:
    path.write_bytes(b"")


def spoil_a_row(path: Path, given: bytes) -> None:
    signature = Envelope.from_bytes(given).signatures[0]
    spoil(path, signature, bytes([signature[0] ^ 1]))


@pytest.mark.parametrize("damage", [overwrite, empty, spoil_a_row])
async def test_a_node_says_that_its_ledger_is_damaged_and_has_its_receipts_again(home, damage, caplog):
    home.fill()
    damage(home.path / LEDGER, home.envelopes_given[1])
    async with serving(home):
        assert "damaged" in caplog.text
        assert await home.holds(*home.envelopes_given, *home.envelopes_taken)
        await asyncio.sleep(0.1)
    lacking = 1 if damage is spoil_a_row else 4
    assert f"From the DHT {lacking} receipts were added to the ledger." in caplog.text


async def test_a_fresh_ledger_gets_what_its_id_did(home):
    async with serving(home):
        assert await home.holds(*home.envelopes_given)


async def test_a_whole_ledger_asks_nobody(home, monkeypatch):
    home.fill()
    asked = []
    monkeypatch.setattr(ledger_restoring, "complete", asked.append)
    with Ledger.open(home.path / LEDGER) as ledger:
        assert loss_of(ledger, home.path, home.server.peer_id) is None
    async with serving(home):
        await asyncio.sleep(0.2)
    assert asked == []


async def test_a_swarm_that_cannot_be_read_is_tried_again(home, monkeypatch, caplog):
    calls = []

    async def read(*_: object) -> list:
        calls.append(len(calls))
        if len(calls) == 1:
            raise PeerUnreachable("nobody answers")
        return home.given

    monkeypatch.setattr(ledger_restoring, "_read", read)
    monkeypatch.setattr(ledger_restoring, "RETRY_S", 0.0)
    caplog.set_level(logging.INFO)
    async with AsyncLedger(Ledger.open(home.path / LEDGER)) as ledger:
        await restore(None, ledger, Loss(frozenset({home.server.peer_id}), is_of_others=False), RULES)
    assert "tried again: nobody answers" in caplog.text
    assert home.held() == set(home.envelopes_given)
