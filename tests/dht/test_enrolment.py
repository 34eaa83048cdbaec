import asyncio
import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import dht.enrolment
from dht.beginnings import Beginning, read_beginnings
from dht.enrolment import Enrolment
from dht.ident import Ident, Role, shard_of
from dht.identity import Identity
from dht.records import Kind, SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.test_swarm import eventually

QUICK = Rules(epoch_s=1, window_epochs=30, evidence_epochs=60, proof_of_work_bits=6)
ALICE = Identity.from_seed(bytes(range(32)))


@contextlib.asynccontextmanager
async def enrolled(swarm: Swarm, identity: Identity, path: Path | None):
    enrolment = Enrolment(swarm, identity, Role.SERVER, path=path, region="here")
    task = asyncio.create_task(enrolment.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def found(reader: Swarm, peer_id: str) -> list[Ident]:
    records = await reader.fetch(Kind.IDENT, (shard_of(peer_id),))
    return [record for record in records if isinstance(record, Ident) and record.peer == peer_id]


async def seen_in(reader: Swarm, peer_id: str, first_epoch: int) -> Ident:
    """Wait until an identity is enrolled in this epoch or a later one."""
    newest: list[Ident] = []

    async def is_there() -> bool:
        newest[:] = await found(reader, peer_id)
        return bool(newest) and newest[0].epoch >= first_epoch

    await eventually(is_there)
    return newest[0]


async def test_an_identity_is_renewed_in_every_epoch_and_counts_from_its_first(tmp_path: Path):
    async with testnet(2, rules=QUICK) as (node, reader):
        async with enrolled(node, ALICE, tmp_path / "ident.json"):
            first = await seen_in(reader, ALICE.peer_id, 0)
            later = await seen_in(reader, ALICE.peer_id, first.epoch + 2)
        assert (later.created_epoch, later.nonce, later.roles) == (first.created_epoch, first.nonce, Role.SERVER)
        assert first.created_epoch <= first.epoch < later.epoch
        kept = read_beginnings(tmp_path / "ident.json", ALICE.peer_id)
        assert kept == {node.parameters_hash.hex(): Beginning(first.created_epoch, first.nonce, 1)}


@pytest.mark.parametrize("loses_its_file", [False, True])
async def test_after_a_restart_it_still_counts_from_its_first_epoch(tmp_path: Path, loses_its_file: bool):
    path = tmp_path / "ident.json"
    async with testnet(2, rules=QUICK) as (node, reader):
        async with enrolled(node, ALICE, path):
            first = await seen_in(reader, ALICE.peer_id, 0)
        if loses_its_file:
            path.unlink()
        async with enrolled(node, ALICE, path):
            later = await seen_in(reader, ALICE.peer_id, QUICK.epoch_of(time.time()) + 1)
        assert later.created_epoch == first.created_epoch
        assert path.exists()


async def test_in_memory_it_is_enrolled_without_a_file():
    async with testnet(2, rules=QUICK) as (node, reader), enrolled(node, node._identity, None):
        assert (await seen_in(reader, node.peer_id, 0)).region == "here"


@pytest.mark.parametrize("jump_s", [1300.0, -5000.0])
async def test_a_clock_that_is_set_while_an_epoch_lasts_is_noticed(monkeypatch: pytest.MonkeyPatch, jump_s: float):
    now_s = [1_000_000.0]
    monkeypatch.setattr(dht.enrolment, "LOOK_S", 0.01)
    monkeypatch.setattr(dht.enrolment, "time", SimpleNamespace(time=lambda: now_s[0]))
    enrolment = Enrolment(cast(Swarm, None), ALICE, Role.SERVER, path=None)
    resting = asyncio.create_task(enrolment._rest(Rules(epoch_s=1000)))
    await asyncio.sleep(0.05)
    assert not resting.done()
    now_s[0] += jump_s
    async with asyncio.timeout(5):
        await resting


@pytest.mark.parametrize("was_ahead", [False, True])
async def test_a_clock_that_is_set_back_ends_no_enrolment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, was_ahead: bool
):
    """Ours is behind for a while, and the swarm believed us before; or it was ahead, and nobody did."""
    rules, now_s = Rules(epoch_s=36), [360_000.0]
    said: list[tuple[int, int]] = []

    class Neighbourhood:
        parameters_hash = b""

        async def wait_for_rules(self) -> Rules:
            return rules

        async def fetch(self, *_: object) -> list[Ident]:
            return []

        async def store(self, signed: SignedRecord) -> bool:
            record = cast(Ident, signed.record)
            said.append((record.created_epoch, record.epoch))
            if len(said) == 1:
                now_s[0] -= 3600
            return not was_ahead or len(said) > 1

    async def pass_by(seconds: float) -> None:
        now_s[0] += seconds
        await asyncio_sleep(0)

    asyncio_sleep = asyncio.sleep
    monkeypatch.setattr(dht.enrolment, "time", SimpleNamespace(time=lambda: now_s[0]))
    monkeypatch.setattr(dht.enrolment, "asyncio", SimpleNamespace(sleep=pass_by, to_thread=asyncio.to_thread))
    enrolment = Enrolment(cast(Swarm, Neighbourhood()), ALICE, Role.SERVER, path=tmp_path / "ident.json")
    running = asyncio.create_task(enrolment.run())
    async with asyncio.timeout(10):
        while len(said) < 2 and not running.done():
            await asyncio_sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert said[0] == (10_000, 10_000)
    created, epoch = said[1]
    assert (created < 10_000) if was_ahead else (created == 10_000 <= epoch)
    assert "clock" in caplog.text
