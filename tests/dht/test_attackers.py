"""Members of the swarm that act against it: admitted peers that run no validator and send what they like."""

import asyncio
import os
import time
from dataclasses import replace

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer

from dht.directory import read_directory
from dht.errors import UnavailableError
from dht.hardening.protocol import dht_id_of
from dht.identity import Identity
from dht.records import Envelope, Kind, SignedRecord, place, seal
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.samples import MANIFEST, announcement


def target(node: Swarm) -> PeerID:
    return PeerID.from_base58(node.peer_id)


async def send_store(
    attacker: Swarm, victim: Swarm, key: bytes, tag: bytes, value: bytes, expires_s: float, *, in_cache: bool = False
) -> bool:
    request = dht_pb2.StoreRequest(
        keys=[DHTID.generate(source=key).to_bytes()],
        subkeys=[tag],
        values=[value],
        expiration_time=[expires_s],
        in_cache=[in_cache],
    )
    stub = attacker._overlay.protocol.get_stub(target(victim))
    return list((await stub.rpc_store(request, timeout=3)).store_ok) == [True]


def dictionary(*entries: tuple[object, object, float]) -> bytes:
    items = [list(entry) for entry in entries]
    return msgpack.packb(msgpack.ExtType(0x50, MSGPackSerializer.dumps([float("inf"), 1e18, items])))


@pytest.fixture
async def stage():
    """A victim whose announcement stands on every node, an attacker, and a reader."""
    async with testnet(3) as (victim, attacker, reader):
        signed = seal(announcement(victim._identity), victim._identity)
        assert await victim.store(signed)
        yield victim, attacker, reader, signed
        assert [server.owner for server in (await read_directory(reader, MANIFEST, time.time())).servers] == [
            victim.peer_id
        ]


@pytest.mark.parametrize(
    "tag", [msgpack.packb(None), b"", msgpack.packb("text"), msgpack.packb(7), b"\xc1", b"\xff" * 9]
)
async def test_a_plain_or_odd_value_with_a_later_expiry_wipes_nothing(stage, tag: bytes):
    _, attacker, reader, signed = stage
    for in_cache in (False, True):
        assert not await send_store(
            attacker, reader, signed.key, tag, b"junk", signed.expires_s + 600.0, in_cache=in_cache
        )


async def test_another_peer_cannot_overwrite_withdraw_or_prolong_an_announcement(stage):
    _, attacker, reader, signed = stage
    subkey = msgpack.packb(signed.subkey)
    stolen = seal(announcement(attacker._identity, end=9), attacker._identity)
    opened = Envelope.from_bytes(signed.envelope)
    edits = [
        replace(signed.record, state=0, t=signed.record.t + 1),
        replace(signed.record, end=9, t=signed.record.t + 1),
    ]
    forged = [place(edit, Envelope(16, edit.to_body(), opened.signatures).to_bytes()) for edit in edits]
    for tried in [stolen, *forged]:
        assert not await send_store(attacker, reader, signed.key, subkey, tried.envelope, tried.expires_s + 0.0)
    assert not await send_store(attacker, reader, signed.key, subkey, signed.envelope, signed.expires_s + 600.0)
    assert not await send_store(attacker, reader, b"another key", subkey, signed.envelope, float(signed.expires_s))


async def test_a_dictionary_with_mixed_subkeys_and_junk_changes_nothing_and_breaks_nothing(stage):
    _, attacker, reader, signed = stage
    later = signed.expires_s + 600.0
    for packed in (
        dictionary((b"bytes", b"x", later), ("text", b"x", later), (7, b"x", later)),
        dictionary((signed.subkey, b"junk", later)),
        dictionary((signed.subkey, signed.envelope, later)),
        dictionary((b"x", 5, later)),
        b"\xc7\x00\x50",
        b"",
        os.urandom(100),
    ):
        assert not await send_store(attacker, reader, signed.key, b"", packed, later)
    assert len(reader._overlay.protocol.storage) == 1


async def test_a_good_record_in_a_batch_is_stored_although_the_others_are_junk(stage):
    _, attacker, reader, signed = stage
    mine = seal(announcement(attacker._identity), attacker._identity)
    packed = dictionary((b"x", b"junk", 1e12), (mine.subkey, mine.envelope, float(mine.expires_s)))
    assert not await send_store(attacker, reader, signed.key, b"", packed, 1e12)
    owners = {record.owner for record in await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0))}
    assert attacker.peer_id in owners
    stone = replace(mine.record, state=0, t=mine.record.t + 1)
    assert await attacker.store(seal(stone, attacker._identity))


async def test_lists_that_do_not_match_and_keys_of_other_lengths_are_refused(stage):
    _, attacker, reader, _ = stage
    stub = attacker._overlay.protocol.get_stub(target(reader))
    for request in (
        dht_pb2.StoreRequest(keys=[bytes(20)], subkeys=[b""], values=[]),
        dht_pb2.StoreRequest(keys=[bytes(19)], subkeys=[b""], values=[b""], expiration_time=[1.0], in_cache=[False]),
    ):
        with pytest.raises(UnavailableError):
            await stub.rpc_store(request, timeout=3)
    for find in (dht_pb2.FindRequest(keys=[b"short"]), dht_pb2.FindRequest(keys=[bytes(20)] * 100)):
        with pytest.raises(UnavailableError):
            await stub.rpc_find(find, timeout=3)


async def test_a_node_that_claims_another_dht_id_enters_no_routing_table(stage):
    victim, attacker, reader, _ = stage
    chosen = DHTID.generate(source=b"next to a key")
    for node in (victim, reader):
        table = node._overlay.protocol.routing_table
        assert dht_id_of(target(attacker)) in table
        await node._overlay.protocol.update_routing_table(chosen, target(attacker))
    stub = attacker._overlay.protocol.get_stub(target(reader))
    await stub.rpc_find(dht_pb2.FindRequest(peer=dht_pb2.NodeInfo(node_id=chosen.to_bytes())), timeout=3)
    await stub.rpc_ping(dht_pb2.PingRequest(peer=dht_pb2.NodeInfo(node_id=chosen.to_bytes())), timeout=3)
    await asyncio.sleep(0.1)
    assert chosen not in reader._overlay.protocol.routing_table
    assert chosen not in victim._overlay.protocol.routing_table


async def test_a_replica_that_answers_with_junk_and_false_neighbours_spoils_no_read(stage):
    _, attacker, reader, signed = stage
    ghost = Identity.ephemeral()
    good = (signed.subkey, signed.envelope, float(signed.expires_s))
    answers = [
        dictionary((b"x", b"junk", 1e12)),
        dictionary((signed.subkey, b"poison", 1e12), good),
        dictionary(("text", b"x", 1.0), (b"bytes", b"x", 1.0)),
        b"\xc1",
        os.urandom(200),
        msgpack.packb(msgpack.ExtType(0x50, b"\xdd\xff\xff\xff\xff")),
    ]

    for answer in answers:

        async def rogue_find(request, context, answer=answer):
            result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=answer, expiration_time=1e12)
            result.nearest_node_ids.extend([bytes(20), DHTID.generate(source=b"chosen").to_bytes(), b"short"])
            result.nearest_peer_ids.extend([b"junk", ghost.peer_id_bytes, b""])
            return dht_pb2.FindResponse(results=[result] * 3)

        name = "DHTProtocol.rpc_find"
        honest = attacker._control._unary_handlers[name]

        async def rogue(request, remote, rogue_find=rogue_find):
            response = await rogue_find(request, None)
            return response.SerializeToString()

        attacker._control._unary_handlers[name] = rogue
        reader._overlay.protocol.storage.clear()
        found = await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0))
        assert found == [signed.record]
        attacker._control._unary_handlers[name] = honest
    assert len(reader._overlay.protocol.routing_table.uid_to_peer_id) == 2


async def test_a_replica_that_answers_with_no_message_at_all_spoils_no_read(stage):
    _, attacker, reader, signed = stage

    async def noise(request: bytes, remote: PeerID) -> bytes:
        return b"\xff" * 50

    attacker._control._unary_handlers["DHTProtocol.rpc_find"] = noise
    assert await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0)) == [signed.record]


async def test_a_replica_that_never_answers_delays_a_read_by_its_timeout_only(stage, monkeypatch):
    _, attacker, reader, signed = stage
    monkeypatch.setattr("dht.hardening.protocol.CALL_S", 0.5)

    async def silence(request: bytes, remote: PeerID) -> bytes:
        await asyncio.sleep(60)
        return b""

    attacker._control._unary_handlers["DHTProtocol.rpc_find"] = silence
    started = time.monotonic()
    assert await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0)) == [signed.record]
    assert time.monotonic() - started < 2
    assert await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0)) == [signed.record]
    assert time.monotonic() - started < 2.5


async def test_a_flood_under_one_key_fills_that_key_and_no_other(stage, monkeypatch):
    victim, attacker, reader, signed = stage
    monkeypatch.setattr("dht.hardening.storage.MAX_SUBKEYS", 20)
    flood: list[SignedRecord] = []
    for _ in range(40):
        sybil = Identity.ephemeral()
        flood.append(seal(replace(announcement(sybil), state=0), sybil))
    # In the names of others it stores nothing; here all of them are members that help it.
    each = flood[0]
    subkey = msgpack.packb(each.subkey)
    assert not await send_store(attacker, reader, each.key, subkey, each.envelope, each.expires_s + 0.0)
    monkeypatch.setattr("dht.hardening.protocol.OWN_KINDS", frozenset())
    stored = [
        await send_store(attacker, reader, each.key, msgpack.packb(each.subkey), each.envelope, each.expires_s + 0.0)
        for each in flood
    ]
    assert stored == [True] * 19 + [False] * 21
    renewed = seal(announcement(victim._identity, t=signed.record.t + 1), victim._identity)
    assert await victim.store(renewed)


async def test_a_large_key_is_read_whole(monkeypatch):
    async with testnet(2) as (node, reader):
        storage = node._overlay.protocol.storage
        num_records = 0
        for _ in range(1500):
            sybil = Identity.ephemeral()
            signed = seal(replace(announcement(sybil), addresses=("/dns4/" + "x" * 200 + "/tcp/1",) * 4), sybil)
            num_records += storage.store_subkey(
                DHTID.generate(source=signed.key), signed.subkey, signed.envelope, float(signed.expires_s)
            )
        assert num_records == 1500
        assert len(await reader.fetch(Kind.ANNOUNCE, (MANIFEST, 0))) == 1500
