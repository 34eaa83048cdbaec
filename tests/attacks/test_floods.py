"""Attacks 15 and 16: more records than a key may hold, and the same one again and again."""

import asyncio
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.storage import MAX_SUBKEYS
from dht.identity import Identity
from dht.records import Kind, SignedRecord
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import receipts_key
from tests.attacks.crowd import key_id, sealed

P, C, D, ATTACKER = (Identity.ephemeral() for _ in range(4))


def memory_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def send(attacker: Swarm, victim: Swarm, key: DHTID, records: list[SignedRecord]) -> int:
    """Store without our own rules, as much in one call as fits; say how much was taken."""
    stored = await attacker._overlay.store_by_id(
        PeerID.from_base58(victim.peer_id),
        [(key, (signed.subkey, signed.envelope, signed.expires_s)) for signed in records],
    )
    return sum(stored)


async def test_a_flood_fills_one_key_of_its_own_and_nothing_else():
    own = await asyncio.to_thread(lambda: [sealed(ATTACKER, C, lane=lane) for lane in range(10_000)])
    honest = [sealed(P, C), sealed(P, D)]
    async with testnet(3) as (attacker, victim, reader):
        assert min(await reader.store_many(honest)) == 3
        assert await send(attacker, victim, key_id(own[0]), own) == MAX_SUBKEYS
        assert await send(attacker, victim, key_id(honest[0]), own[:5000]) == 0
        assert await send(attacker, victim, DHTID.generate(source=b"any"), own[:5000]) == 0
        storage = victim._overlay.protocol.storage
        assert len(storage.records(key_id(own[0]))) == MAX_SUBKEYS
        assert len(storage) == 2

        renewed = sealed(P, C, seq=2, amount=128, work=512)
        assert min(await reader.store_many([renewed])) == 3
        found = await reader.fetch(Kind.RECEIPT, receipts_key(P.peer_id, renewed.record.epoch))
        assert sorted(found, key=repr) == sorted([renewed.record, honest[1].record], key=repr)
        began = time.monotonic()
        flooded = await reader.fetch(Kind.RECEIPT, receipts_key(ATTACKER.peer_id, renewed.record.epoch))
        assert len(flooded) == MAX_SUBKEYS
        assert time.monotonic() - began < 30


async def test_a_hundred_thousand_stores_of_the_same_leave_memory_flat():
    signed = sealed(P, C)
    async with testnet(2) as (attacker, victim):
        storage = victim._overlay.protocol.storage
        assert await send(attacker, victim, key_id(signed), [signed] * 20_000) == 20_000  # what a large call takes once
        before = memory_bytes()
        for _ in range(4):
            assert await send(attacker, victim, key_id(signed), [signed] * 20_000) == 20_000
        assert memory_bytes() - before < 16 * 2**20
        assert len(storage.expiration_heap) == 1
        assert len(storage.get(key_id(signed)).value.expiration_heap) == 1
        for number in range(1000):
            odd = replace(signed, subkey=os.urandom(43), expires_s=signed.expires_s + number)
            assert await send(attacker, victim, key_id(signed), [odd]) == 0
        assert len(storage.expiration_heap) == 1
