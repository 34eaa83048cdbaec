"""Where records are put and what that takes, with real nodes."""

import asyncio

from hivemind.proto import dht_pb2

from dht.hardening.protocol import NUM_REPLICAS
from dht.identity import Identity
from dht.records import Kind, seal
from dht.testnet import testnet
from dht.work import receipts_key
from tests.dht.hardening.test_keeper import calls_of
from tests.dht.receipts.made import holds, put, sealed
from tests.dht.samples import announcement

P, C = Identity.ephemeral(), Identity.ephemeral()


async def test_a_receipt_stands_at_its_whole_region_and_an_announcement_at_a_few():
    async with testnet(8) as nodes:
        offer = seal(announcement(nodes[0]._identity), nodes[0]._identity)
        done = sealed(P, C)
        assert await nodes[0].store(offer)
        assert await nodes[0].store(done)
        assert sum(holds(node, offer) for node in nodes) == NUM_REPLICAS
        assert sum(holds(node, done) for node in nodes) == 8
        assert all(node._overlay.regions.num_crowded == 0 for node in nodes)


async def test_many_receipts_take_one_look_up_a_key_and_one_call_a_member():
    async with testnet(4) as (node, *others):
        assert await node._overlay.regions.size() == 4
        heard = {name: calls_of(others[0], f"DHTProtocol.rpc_{name}") for name in ("store", "held", "find")}
        batch = [sealed(P, C, lane=lane) for lane in range(100)]
        batch += [sealed(C, P, lane=lane) for lane in range(50)]
        assert await node.store_many(batch) == [4] * 150
        assert len(heard["store"]) == 1
        assert len(dht_pb2.StoreRequest.FromString(heard["store"][0]).keys) == 150
        assert len(heard["held"]) == 2
        assert heard["find"] == []


async def test_what_breaks_the_rules_is_left_out_of_a_publication_and_counts_as_held_by_nobody():
    async with testnet(2) as (node, other):
        good, later = sealed(P, C), sealed(P, C, seq=2, amount=128, work=512)
        broken = sealed(P, C, lane=9)
        broken = type(broken)(broken.record, broken.envelope, broken.key, broken.subkey, broken.expires_s + 1)
        assert await node.store_many([later, broken]) == [2, 0]
        assert await node.store_many([good]) == [0], "a newer one stands there"
        found = await other.fetch(Kind.RECEIPT, receipts_key(P.peer_id, good.record.epoch))
        assert found == [later.record]


async def test_what_a_reader_holds_itself_is_not_checked_again_at_every_member():
    async with testnet(4) as nodes:
        reader = nodes[3]
        for node in nodes:
            for lane in range(50):
                put(node, sealed(P, C, lane=lane))
        put(nodes[0], sealed(P, C, lane=99))
        checked = []
        honest = reader.validator.validate
        reader.validator.validate = lambda record: checked.append(record) or honest(record)
        found = await reader.fetch(Kind.RECEIPT, receipts_key(P.peer_id, sealed(P, C).record.epoch))
        assert len(found) == 51
        assert len(checked) == 1


async def test_who_leaves_in_the_middle_of_a_publication_gets_an_answer_and_no_stray_cancellation():
    async with testnet(4) as (node, *others):
        giving_up = asyncio.Event()

        async def given_up(peer: str) -> None:
            greeting = asyncio.get_running_loop().create_task(asyncio.sleep(60))
            giving_up.set()
            asyncio.get_running_loop().call_later(0.05, greeting.cancel)
            await asyncio.shield(greeting)

        node._overlay.protocol._ensure = given_up
        assert await node.store_many([sealed(P, C)]) == [1]
        assert giving_up.is_set()
        assert not any(other._overlay.protocol.storage for other in others)
