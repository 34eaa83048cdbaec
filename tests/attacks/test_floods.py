"""Attacks 15 and 16: more records than a key or a node may hold, and the same one again and again."""

import asyncio
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.hardening.storage import MAX_SUBKEYS
from dht.ident import Ident, Role, shard_of
from dht.identity import Identity
from dht.records import Kind, SignedRecord, seal
from dht.rules import DEFAULT_RULES
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import receipts_key
from tests.attacks.crowd import key_id, sealed, standing
from tests.dht.samples import MANIFEST, announcement

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


def thrown_away(num_keys: int) -> list[SignedRecord]:
    """Receipts under so many keys: of every epoch that counts, by providers whom nobody ever meets."""
    rules, made = DEFAULT_RULES, []
    epoch = rules.epoch_of(time.time())
    while len(made) < num_keys:
        provider = Identity.ephemeral()
        for past in range(epoch - 56, epoch + 1):
            began = rules.start_of(past)
            made.append(sealed(provider, C, epoch=past, t_first=began, t_last=began + 1))
    return made[:num_keys]


def ident(of: Identity) -> SignedRecord:
    epoch = DEFAULT_RULES.epoch_of(time.time())
    return seal(Ident(of.peer_id, epoch, epoch, 0, Role.SERVER, ""), of)


async def spread(attacker: Swarm, victim: Swarm, records: list[SignedRecord]) -> int:
    """Store records of many keys at one member; say how many were taken."""
    stored = await attacker._overlay.store_by_id(
        PeerID.from_base58(victim.peer_id),
        [(key_id(each), (each.subkey, each.envelope, each.expires_s)) for each in records],
    )
    return sum(stored)


async def test_a_stranger_who_fills_every_node_keeps_nobody_else_out(monkeypatch):
    flood = await asyncio.to_thread(thrown_away, 400)
    async with testnet(4) as (attacker, *nodes):
        publisher, _, reader = nodes
        for node in nodes:
            monkeypatch.setattr("dht.hardening.storage.MAX_KEYS", 200 + len(node._overlay.protocol.storage))
            assert await spread(attacker, node, flood) == 200
        monkeypatch.setattr("dht.hardening.storage.MAX_KEYS", 200)
        attacker._overlay.protocol.storage.max_subkeys = 0
        receipt, named = sealed(P, publisher._identity), ident(publisher._identity)
        offered = seal(announcement(publisher._identity), publisher._identity)
        assert min(await publisher.store_many([receipt, named])) >= 3
        assert await publisher.store(offered)
        assert all(standing(node, each) == each.envelope for node in nodes for each in (receipt, named, offered))
        for node in nodes:
            node._overlay.protocol.storage.num_refused = 0
            assert len(node._overlay.protocol.storage) <= 200 + 3
            assert await spread(attacker, node, flood[300:]) == 0
            assert node._overlay.protocol.storage.num_refused == 100

        async with Swarm(Identity.ephemeral(), join=reader.join_code) as newcomer:
            assert await newcomer.fetch(Kind.RECEIPT, receipts_key(P.peer_id, receipt.record.epoch)) == [receipt.record]
            assert named.record in await newcomer.fetch(Kind.IDENT, (shard_of(publisher.peer_id),))
            assert await newcomer.fetch(Kind.ANNOUNCE, (MANIFEST, 0)) == [offered.record]


async def test_ids_that_a_stranger_throws_away_keep_nobody_out_of_a_key_that_all_share(monkeypatch):
    monkeypatch.setattr("dht.hardening.storage.MAX_SUBKEYS", 10)
    async with testnet(3) as (attacker, victim, publisher):
        mine = ident(publisher._identity)
        shard = mine.record.key_parts()
        flood: list[SignedRecord] = []
        while len(flood) < 15:
            thrown = Identity.ephemeral()
            if shard_of(thrown.peer_id) == shard[0]:
                flood.append(ident(thrown))
                await asyncio.sleep(0)
        assert await spread(attacker, victim, flood) == 10
        assert await publisher.store(mine)
        assert standing(victim, mine) == mine.envelope
        assert await spread(attacker, victim, flood) == 9
        assert standing(victim, mine) == mine.envelope


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
