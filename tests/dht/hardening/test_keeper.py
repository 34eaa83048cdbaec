"""Records outlive their nodes: holders store them again where they are missing, and nowhere else."""

import asyncio
import random
import time

from hivemind.dht.routing import DHTID

from dht.hardening.keeper import MAX_FALSE, ROUNDS_PER_EPOCH, Keeper
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import seal
from dht.rules import DEFAULT_RULES, Rules
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.validation import is_regional
from tests.dht.receipts.made import holds, put, sealed
from tests.dht.samples import announcement

P, C, D = (Identity.ephemeral() for _ in range(3))


def keeper(node: Swarm, rules: Rules = DEFAULT_RULES) -> Keeper:
    return Keeper(node._overlay, lambda: rules, is_regional, random.Random(0))


def key_id(signed) -> DHTID:
    return DHTID.generate(source=signed.key)


def calls_of(node: Swarm, name: str) -> list[bytes]:
    """Note the calls that a node answers."""
    heard: list[bytes] = []
    honest = node._control._unary_handlers[name]

    async def noting(request: bytes, remote: object) -> bytes:
        heard.append(request)
        return await honest(request, remote)

    node._control._unary_handlers[name] = noting
    return heard


async def test_a_fresh_node_is_given_what_it_should_hold_and_holders_that_agree_send_nothing():
    async with testnet(3) as (holder, other, fresh):
        signed, second = sealed(P, C), sealed(P, D)
        for node in (holder, other):
            put(node, signed)
        put(holder, second)
        caring = keeper(holder)
        await caring.round([key_id(signed)])
        assert all(holds(node, each) for node in (other, fresh) for each in (signed, second))
        assert caring.num_sent == 3
        stores = calls_of(fresh, "DHTProtocol.rpc_store")
        finds = calls_of(fresh, "DHTProtocol.rpc_find")
        again = keeper(other)
        await again.round([key_id(signed)])
        assert again.num_sent == 0
        assert stores == finds == []


async def test_two_holders_that_differ_both_end_with_the_newest():
    async with testnet(2) as (one, other):
        old, new, mine = sealed(P, C), sealed(P, C, seq=2, amount=128, work=512), sealed(P, D)
        put(one, old)
        put(one, mine)
        put(other, new)
        caring = keeper(one)
        await caring.round([key_id(old)])
        for node in (one, other):
            assert holds(node, new)
            assert holds(node, mine)
        assert (caring.num_taken, caring.num_sent) == (1, 1)


async def test_what_a_keeper_takes_from_a_member_is_counted_for_that_member():
    async with testnet(2) as (one, other):
        signed, mine = sealed(P, C), sealed(P, D)
        put(one, mine)
        put(other, signed)
        await keeper(one).round([key_id(signed)])
        senders = one._overlay.protocol.storage._tenants
        assert senders.sender(key_id(signed), signed.subkey) == other._identity.peer_id_bytes
        given = other._overlay.protocol.storage._tenants
        assert given.sender(key_id(mine), mine.subkey) == one._identity.peer_id_bytes


async def test_a_holder_that_lies_about_what_it_holds_spoils_nothing():
    async with testnet(3) as (holder, liar, fresh):
        signed = sealed(P, C)
        put(holder, signed)

        async def noise(request: bytes, remote: object) -> bytes:
            return random.Random(len(request)).randbytes(200)

        for name in ("DHTProtocol.rpc_held", "DHTProtocol.rpc_find"):
            liar._control._unary_handlers[name] = noise
        await keeper(holder).round([key_id(signed)])
        assert holds(holder, signed)
        assert holds(fresh, signed)


async def test_a_member_whose_digests_differ_for_nothing_is_not_read_for_ever():
    async with testnet(2) as (holder, liar):
        batch = [sealed(P, C, epochs_ago=epochs_ago) for epochs_ago in range(20)]
        for signed in batch:
            for node in (holder, liar):
                put(node, signed)
        liar._overlay.protocol.storage.digest = lambda key: b"another digest.."
        finds, stores = (calls_of(liar, f"DHTProtocol.rpc_{name}") for name in ("find", "store"))
        await keeper(holder).round([key_id(signed) for signed in batch])
        assert len(finds) == MAX_FALSE
        assert stores == []


class Counting(bytes):
    """Bytes that count how often they are compared."""

    num_compared = 0

    def __eq__(self, other: object) -> bool:
        Counting.num_compared += 1
        return bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


async def test_a_full_key_costs_as_many_comparisons_as_it_has_records(monkeypatch):
    async with testnet(2) as (node, member):
        key, expires_s, num = DHTID(7), time.time() + 1000.0, 300
        subkeys = [random.Random(number).randbytes(43) for number in range(num)]
        ours = [(Counting(subkey), b"value", expires_s) for subkey in subkeys]
        theirs = [(Counting(bytes(subkey)), b"value", expires_s) for subkey in reversed(subkeys)]
        protocol = node._overlay.protocol

        async def found(peer, keys, findings):
            return {key: (theirs, {})}

        monkeypatch.setattr(protocol, "call_find", found)
        monkeypatch.setattr(protocol.storage, "records", lambda key: ours)
        Counting.num_compared = 0
        assert await keeper(node)._lacking(member._overlay.protocol.p2p.peer_id, key, is_empty=False) == []
        assert Counting.num_compared <= 8 * num


async def test_announcements_are_left_to_their_owners():
    async with testnet(2) as (node, _):
        assert await node.store(seal(announcement(node._identity), node._identity))
        assert await keeper(node)._kept_keys() == []
        put(node, sealed(P, C))
        assert await keeper(node)._kept_keys() == [key_id(sealed(P, C))]


async def test_every_key_is_due_about_once_an_epoch_and_not_all_at_once():
    async with testnet(1) as (node,):
        caring = keeper(node)
        keys = [DHTID(number) for number in range(400)]
        due = [set(caring.take_due(keys)) for _ in range(5 * ROUNDS_PER_EPOCH)]
        assert all(50 < len(each) < 200 for each in due[:ROUNDS_PER_EPOCH])
        assert set().union(*due[:ROUNDS_PER_EPOCH]) == set(keys)
        counts = [sum(key in each for each in due) for key in keys]
        assert set(counts) <= {4, 5, 6, 7}
        assert caring.take_due([]) == []
        assert not caring._due


async def test_records_move_on_while_all_that_held_them_first_die():
    signed = [sealed(P, C, lane=lane) for lane in range(5)]
    async with testnet(1) as (first,):
        join = JoinCode(tuple(first.addresses), first.name)
        generations = []
        for _ in range(3):
            nodes = [Swarm(Identity.ephemeral(), join=join) for _ in range(3)]
            for node in nodes:
                await node.__aenter__()
            if not generations:
                assert await nodes[0].store_many(signed) == [4] * 5
            else:
                await keeper(generations[-1][0]).round([key_id(signed[0])])
            if generations:
                first._overlay.protocol.storage.clear()
                await asyncio.gather(*(node.__aexit__(None, None, None) for node in generations[-1]))
            generations.append(nodes)
        assert all(holds(node, each) for node in generations[-1] for each in signed)
        await asyncio.gather(*(node.__aexit__(None, None, None) for node in generations[-1]))


async def test_a_node_cares_for_records_by_itself():
    async with testnet(2) as (holder, fresh):
        for node in (holder, fresh):
            node.validator.rules = Rules(epoch_s=2, window_epochs=100)
        signed = sealed(P, C, Rules(epoch_s=2, window_epochs=100))
        put(holder, signed)
        task = asyncio.get_running_loop().create_task(keeper(holder, Rules(epoch_s=2, window_epochs=100)).run())
        async with asyncio.timeout(20):
            while not holds(fresh, signed):
                await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_error_that_nobody_foresaw_is_not_the_last_round(caplog):
    async with testnet(1) as (node,):
        caring = keeper(node, Rules(epoch_s=1))
        rounds = []

        async def failing():
            rounds.append(1)
            raise ZeroDivisionError("a defect")

        caring.round = failing
        task = asyncio.get_running_loop().create_task(caring.run())
        async with asyncio.timeout(10):
            while len(rounds) < 2:
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "defect of this program" in caplog.text
