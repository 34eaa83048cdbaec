"""Attacks 12 to 14: replicas that lie, ids that are chosen, and ids that are ground until they surround a key."""

import os
from dataclasses import replace

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer

from dht.hardening.protocol import BUCKET_SIZE, dht_id_of
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import Envelope, Kind, place
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import receipts_key
from tests.attacks.crowd import (
    id_of,
    key_id,
    mined,
    placed_at,
    provider_at,
    sealed,
    standing,
    start,
    stop,
    swallow,
)

P, C, D, STRANGER = (Identity.ephemeral() for _ in range(4))


def dictionary(*entries: tuple[object, object, float]) -> bytes:
    items = [list(entry) for entry in entries]
    return msgpack.packb(msgpack.ExtType(0x50, MSGPackSerializer.dumps([float("inf"), 1e18, items])))


async def test_a_rogue_replica_spoils_no_read_and_poisons_no_holder():
    signed, other = sealed(P, C, seq=2, amount=128, work=512), sealed(P, D)
    stale, newer = sealed(P, C), sealed(P, C, seq=9, amount=999, work=3996)
    opened = Envelope.from_bytes(newer.envelope)
    half = place(newer.record, replace(opened, signatures=opened.signatures[:1]).to_bytes())
    forged = place(newer.record, replace(opened, signatures=(STRANGER.sign(2, opened.body),) * 2).to_bytes())
    longer = (signed.subkey, signed.envelope, signed.expires_s + 3600)
    answers = [
        dictionary((signed.subkey, b"junk", 1e12), (b"x", b"junk", 1e12)),
        dictionary((half.subkey, half.envelope, half.expires_s)),
        dictionary((forged.subkey, forged.envelope, forged.expires_s)),
        dictionary((stale.subkey, stale.envelope, stale.expires_s)),
        dictionary(longer, (other.subkey, signed.envelope, signed.expires_s)),
        dictionary(("text", b"x", 1.0), (7, b"x", 1.0)),
        os.urandom(300),
        b"\xc1",
    ]
    async with testnet(4) as (holder, rogue, third, reader):
        assert await holder.store_many([signed, other]) == [4, 4]
        for answer in answers:

            async def lie(request: bytes, remote: object, answer: bytes = answer) -> bytes:
                result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=answer, expiration_time=1e12)
                result.nearest_node_ids.extend([bytes(20), b"short"])
                result.nearest_peer_ids.extend([b"junk", STRANGER.peer_id_bytes])
                return dht_pb2.FindResponse(results=[result] * 70).SerializeToString()

            for call in ("rpc_find", "rpc_held"):
                rogue._control._unary_handlers[f"DHTProtocol.{call}"] = lie
            reader._overlay.protocol.storage.clear()
            found = await reader.fetch(Kind.RECEIPT, receipts_key(P.peer_id, signed.record.epoch))
            assert sorted(found, key=repr) == sorted([signed.record, other.record], key=repr)
            await third._keeper.round([key_id(signed)])
            assert standing(third, signed) == signed.envelope
        assert len(reader._overlay.protocol.routing_table.uid_to_peer_id) == 3


async def test_an_id_that_is_chosen_stands_in_no_honest_routing_table_and_is_given_nothing():
    """For announcements and plain calls: tests/dht/test_attackers.py."""
    signed = sealed(P, C)
    async with testnet(4) as (publisher, attacker, accomplice, honest):
        chosen = DHTID(int(key_id(signed)) ^ 1)
        info = dht_pb2.NodeInfo(node_id=chosen.to_bytes())
        attacker_id = PeerID.from_base58(attacker.peer_id)

        async def name_it(request: bytes, remote: object) -> bytes:
            result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
            result.nearest_node_ids.append(chosen.to_bytes())
            result.nearest_peer_ids.append(attacker_id.to_bytes())
            return dht_pb2.FindResponse(results=[result], peer=info).SerializeToString()

        for call in ("rpc_find", "rpc_held"):
            accomplice._control._unary_handlers[f"DHTProtocol.{call}"] = name_it
        for victim in (publisher, honest):
            stub = attacker._overlay.protocol.get_stub(PeerID.from_base58(victim.peer_id))
            await stub.rpc_held(dht_pb2.FindRequest(keys=[chosen.to_bytes()], peer=info), timeout=3)
            await stub.rpc_ping(dht_pb2.PingRequest(peer=info), timeout=3)
            await stub.rpc_store(dht_pb2.StoreRequest(peer=info), timeout=3)
        assert await publisher.store(signed)
        assert await honest.fetch(Kind.RECEIPT, receipts_key(P.peer_id, signed.record.epoch)) == [signed.record]
        for victim in (publisher, honest):
            table = victim._overlay.protocol.routing_table
            assert chosen not in table
            assert all(dht_id_of(peer) == node_id for node_id, peer in table.uid_to_peer_id.items())


async def test_a_thousand_ground_keys_around_a_record_neither_hide_it_nor_keep_it_from_honest_members():
    """The key lies in the first 64th of the id space, and honest members where no ground ids are.

    Of a thousand ids ground, 22 lie in the 45th part of the space around the key; honest members in the last 12.5/16.
    """
    signed = sealed(provider_at(0, 1 / 64), C)
    key = key_id(signed)
    identities = [placed_at((slot - 0.5) / 16, slot / 16) for slot in (4, 6, 8, 9, 11, 12, 14, 16)]
    async with Swarm(identities[0]) as first:
        join = JoinCode(tuple(first.addresses), first.name)
        honest = [first, *await start(identities[1:], join)]
        sybils = await start(mined(key, 1000, BUCKET_SIZE + 2), join)
        try:
            await surround(honest, sybils)
            ids = sorted([*honest, *sybils], key=lambda node: int(key.xor_distance(id_of(node))))
            assert set(ids[: len(sybils)]) == set(sybils), "nobody else is among those whom a plain look-up asks"
            publisher, reader = honest[1], honest[2]
            plain = await publisher._overlay.walk(key, publisher._overlay.regions.ask_neighbours)
            assert not {peer.to_base58() for peer in plain} & {node.peer_id for node in honest}

            assert await publisher.store(signed)
            holders = [node for node in honest if standing(node, signed) == signed.envelope]
            assert len(holders) >= 4
            for node in (publisher, reader):
                node._overlay.protocol.storage.clear()
            assert await reader.fetch(Kind.RECEIPT, signed.record.key_parts()) == [signed.record]
            assert publisher._overlay.regions.num_crowded > 0
            assert (alarms := reader._overlay.regions.num_crowded) > 0
            for _ in range(5):
                await reader.fetch(Kind.RECEIPT, receipts_key(provider_at(0.5, 1).peer_id, signed.record.epoch))
            assert reader._overlay.regions.num_crowded == alarms, "keys far from the crowd are no cause for alarm"
        finally:
            await stop([*sybils, *honest[1:]])


async def surround(honest: list[Swarm], sybils: list[Swarm]) -> None:
    """Let every sybil swallow, and all meet whom they can."""
    for sybil in sybils:
        swallow(sybil, sybils)
    for node in [*honest, *sybils]:
        await node._overlay.join([honest[0].peer_id] if node is not honest[0] else [sybils[0].peer_id])
