"""What a node does for its receipts while it runs."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dht.ident import Role
from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.rules import Rules
from dht.testnet import testnet
from dht.work import Slot, WorkKind
from node.config import LEDGER
from node.run import receipt_keeping
from node.run.receipt_keeping import ReceiptKeeping

RULES = Rules(epoch_s=100_000, window_epochs=30, proof_of_work_bits=4)
CONSUMER = Identity.ephemeral()


async def signed_numbers(home: Path, identity: Identity, swarm, num: int, lane: int = 7) -> set[tuple[Slot, int]]:
    """Run as a server does, and sign so often in one lane."""
    async with ReceiptKeeping(home, identity, swarm, Role.SERVER) as keeping:
        epoch = keeping.rules.epoch_of(receipt_keeping.time.time())
        slot = Slot(identity.peer_id, CONSUMER.peer_id, epoch, lane, WorkKind.DECODE)
        own = identity.peer_id
        return {(slot, await keeping.ledger.ask(lambda held: held.reserve(own, slot))) for _ in range(num)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass for the ledger; the middle of an epoch stays within it."""
    passed_s = [0.0]
    now_s = RULES.start_of(RULES.epoch_of(time.time())) + 10_000.0
    monkeypatch.setattr(receipt_keeping, "time", SimpleNamespace(time=lambda: now_s + passed_s[0]))
    return passed_s


@pytest.mark.parametrize("ledger_of", ["nobody", "another id", "a client", "the same id, but old", "the same id"])
async def test_an_identity_that_comes_from_elsewhere_signs_no_number_again(tmp_path: Path, clock, ledger_of: str):
    identity = Identity.ephemeral()
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    async with testnet(1, rules=RULES) as (swarm,):
        signed = await signed_numbers(old, identity, swarm, 20)
        if ledger_of == "the same id, but old":
            (new / LEDGER).write_bytes((old / LEDGER).read_bytes())
        clock[0] += 60
        signed |= await signed_numbers(old, identity, swarm, 20)
        if ledger_of == "the same id":
            (new / LEDGER).write_bytes((old / LEDGER).read_bytes())
        if ledger_of == "another id":
            await signed_numbers(new, Identity.ephemeral(), swarm, 3)
        if ledger_of == "a client":
            Ledger.open(new / LEDGER).close()
        for home in (new, tmp_path / "third"):  # One backup may be used twice.
            clock[0] += 60
            again = await signed_numbers(home, identity, swarm, 20)
            assert not signed & again
            assert min(again, key=lambda each: each[1])[1] > max(signed, key=lambda each: each[1])[1]
            signed |= again
    assert len(signed) == 80


async def test_a_crash_between_the_first_files_of_a_home_costs_nothing(tmp_path: Path, clock):
    identity = Identity.ephemeral()
    async with testnet(1, rules=RULES) as (swarm,):
        signed = await signed_numbers(tmp_path, identity, swarm, 5)
        for suffix in ("", "-wal", "-shm", ".lock"):
            (tmp_path / f"{LEDGER}{suffix}").unlink(missing_ok=True)
        Ledger.open(tmp_path / LEDGER).close()  # begun, and killed at once
        clock[0] += 60
        assert not signed & await signed_numbers(tmp_path, identity, swarm, 5)
