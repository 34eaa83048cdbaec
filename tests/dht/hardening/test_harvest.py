"""Many keys in few calls: all is read that anybody holds, whoever lies about what he holds."""

import asyncio

from hivemind.dht.routing import DHTID
from hivemind.proto import dht_pb2

from dht.hardening import harvest as harvest_module
from dht.hardening import overlay as overlay_module
from dht.hardening import protocol as protocol_module
from dht.hardening.harvest import Conduct, settle, share_out
from dht.hardening.protocol import MAX_KEYS_PER_CALL
from dht.hardening.regions import MIN_PARTS
from dht.identity import Identity
from dht.records import Kind
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import receipts_key
from tests.dht.hardening.test_keeper import calls_of
from tests.dht.receipts.made import put, sealed

PROVIDERS = [Identity.ephemeral() for _ in range(40)]
C, D = Identity.ephemeral(), Identity.ephemeral()


async def read_all(reader: Swarm, epochs_ago: int = 0) -> dict[str, set[bytes]]:
    """Read the receipts of all providers; the providers of which a key came."""
    epoch = sealed(PROVIDERS[0], C, epochs_ago=epochs_ago).record.epoch
    keys = [receipts_key(provider.peer_id, epoch) for provider in PROVIDERS]
    found: dict[str, set[bytes]] = {}
    num_keys = 0
    async for signed in reader.read_many(Kind.RECEIPT, keys):
        num_keys += 1
        for each in signed:
            found.setdefault(each.record.provider, set()).add(each.envelope)
    assert num_keys == len(keys)
    return found


def given(*signed) -> dict[str, set[bytes]]:
    return {
        provider: {each.envelope for each in signed if each.record.provider == provider}
        for provider in {each.record.provider for each in signed}
    }


async def test_what_all_hold_is_read_from_one_of_them_and_in_few_calls():
    async with testnet(5) as (*holders, reader):
        signed = [sealed(provider, C) for provider in PROVIDERS]
        for node in holders:
            for each in signed:
                put(node, each)
        await reader._overlay.regions.size()
        finds = [calls_of(node, "DHTProtocol.rpc_find") for node in holders]
        helds = [calls_of(node, "DHTProtocol.rpc_held") for node in holders]
        assert await read_all(reader) == given(*signed)
        asked = [len(dht_pb2.FindRequest.FromString(call).keys) for calls in finds for call in calls]
        assert sum(asked) == len(PROVIDERS), "each key is read once"
        assert max(len(calls) for calls in finds) == 1
        assert max(len(calls) for calls in helds) == MIN_PARTS + 1


async def test_what_one_member_alone_holds_is_read_and_the_newest_counts():
    async with testnet(4) as (one, other, third, reader):
        old, new = sealed(PROVIDERS[0], C), sealed(PROVIDERS[0], C, seq=2, amount=128, work=512)
        mine, lone = sealed(PROVIDERS[0], D), sealed(PROVIDERS[1], C)
        for node in (one, other, third):
            put(node, old)
        put(one, new)
        put(other, mine)
        put(third, lone)
        assert await read_all(reader) == given(new, mine, lone)


async def test_a_member_that_claims_what_others_hold_and_gives_less_hides_nothing():
    async with testnet(4) as (liar, honest, _, reader):
        signed = [sealed(provider, consumer) for provider in PROVIDERS for consumer in (C, D)]
        for each in signed:
            put(honest, each)
            if each.record.consumer == C.peer_id:
                put(liar, each)
        liar._overlay.protocol.storage.digest = honest._overlay.protocol.storage.digest
        finds = calls_of(liar, "DHTProtocol.rpc_find")
        assert await read_all(reader) == given(*signed)
        assert finds, "it was believed at first"


async def test_digests_that_nothing_bears_out_cost_one_reading_each():
    async with testnet(3) as (liar, honest, reader):
        signed = [sealed(provider, C) for provider in PROVIDERS]
        for each in signed:
            put(honest, each)
        liar._overlay.protocol.storage.digest = lambda key: key.to_bytes() + bytes(12)
        finds = calls_of(liar, "DHTProtocol.rpc_find")
        assert await read_all(reader) == given(*signed)
        asked = [key for call in finds for key in dht_pb2.FindRequest.FromString(call).keys]
        assert len(asked) <= 2 * len(PROVIDERS), "a part of them together, and what came empty once alone"


async def test_two_receipts_of_one_number_at_two_members_are_both_seen():
    async with testnet(3) as (one, other, reader):
        heard = []
        reader.on_contradiction(lambda first, second: heard.append({first, second}))
        a, b = sealed(PROVIDERS[0], C), sealed(PROVIDERS[0], C, amount=65, work=260)
        put(one, a)
        put(other, b)
        assert len(await read_all(reader)) == 1
        assert {a.envelope, b.envelope} in heard


async def test_what_does_not_fit_into_one_answer_is_asked_for_alone(monkeypatch):
    async with testnet(2) as (holder, reader):
        signed = [sealed(provider, C) for provider in PROVIDERS]
        for each in signed:
            put(holder, each)
        monkeypatch.setattr(protocol_module, "MAX_ANSWER_BYTES", 1200)
        assert await read_all(reader) == given(*signed)


async def test_members_that_are_silent_or_die_meanwhile_hold_nothing_up():
    async with testnet(4) as (silent, dying, honest, reader):
        signed = [sealed(provider, C) for provider in PROVIDERS]
        for each in signed:
            for node in (dying, honest):
                put(node, each)

        async def never(request: bytes, remote: object) -> bytes:
            await asyncio.sleep(60)
            return b""

        async def fail(request: bytes, remote: object) -> bytes:
            raise ValueError

        silent._control._unary_handlers["DHTProtocol.rpc_held"] = never
        dying._control._unary_handlers["DHTProtocol.rpc_find"] = fail
        async with asyncio.timeout(40):
            assert await read_all(reader) == given(*signed)


def test_whoever_has_least_to_do_is_asked_and_what_is_read_is_asked_of_nobody():
    keys = [DHTID(number) for number in range(MAX_KEYS_PER_CALL)]
    claims = {key: {"a": b"1", "b": b"1", "c": b"2"} for key in keys}
    plan = share_out(claims)
    assert sorted(key for mine in plan.values() for key in mine) == keys
    assert {len(mine) for mine in plan.values()} == {21, 22}
    for key in keys:
        settle(claims[key], b"1")
    assert share_out(claims) == {"c": keys}
    assert share_out({keys[0]: {}}) == {}


def test_who_is_slow_is_asked_only_for_what_nobody_else_claims():
    first, second = DHTID(1), DHTID(2)
    claims = {first: {"slow": b"1", "quick": b"1"}, second: {"slow": b"2"}}
    assert share_out(claims, {"slow"}) == {"quick": [first], "slow": [second]}
    assert share_out({first: {"slow": b"1", "slower": b"1"}}, {"slow", "slower"}) == {"slow": [first]}


def test_time_is_wasted_by_what_is_not_borne_out_alone():
    conduct = Conduct()
    for _ in range(100):
        conduct.note("slow but true", 2.9, 16, 16)
        conduct.note("quick", 0.01, 16, 15)
        conduct.note("full", 2.0, 0, 0)  # nothing but keys that are asked for alone
    assert conduct.wasted_s.get("slow but true", 0.0) == 0.0
    assert not any(conduct.is_left(peer) for peer in ("slow but true", "quick", "full"))
    assert conduct.slow == {"slow but true", "full"}
    conduct.note("full", 0.1, 16, 16)
    assert conduct.slow == {"slow but true"}
    for _ in range(16):
        assert not conduct.is_left("liar")
        conduct.note("liar", 2.0, 16, 1)
    assert conduct.is_left("liar")


async def test_a_member_that_wastes_time_is_left_behind_for_the_whole_reading(monkeypatch):
    monkeypatch.setattr(overlay_module, "KEYS_PER_HARVEST", 8)
    monkeypatch.setattr(harvest_module, "WASTED_S", 1.0)
    async with testnet(3) as (liar, honest, reader):
        signed = [sealed(provider, C) for provider in PROVIDERS]
        for each in signed:
            put(honest, each)
        liar._overlay.protocol.storage.digest = lambda key: key.to_bytes() + bytes(12)
        find = liar._control._unary_handlers["DHTProtocol.rpc_find"]

        async def late(request: bytes, remote: object) -> bytes:
            await asyncio.sleep(0.55)
            return await find(request, remote)

        liar._control._unary_handlers["DHTProtocol.rpc_find"] = late
        await reader._overlay.regions.size()
        finds, helds = (calls_of(liar, f"DHTProtocol.rpc_{name}") for name in ("find", "held"))
        assert await read_all(reader) == given(*signed)
        assert len(finds) == 2, "in the first of five harvests, in which it claims eight keys falsely"
        assert len([call for call in helds if len(dht_pb2.FindRequest.FromString(call).keys) > 1]) == 1
