"""Who signs two receipts that contradict each other is found out by whoever stores or reads them."""

import asyncio
import time
from dataclasses import replace

import pytest

from dht.identity import Identity
from dht.receipts import equivocations
from dht.receipts.equivocations import PROOFS_PER_PEER, EquivocationWatch, publish_proof, read_proofs
from dht.records import Envelope, Kind, place, seal
from dht.rules import DEFAULT_RULES
from dht.testnet import testnet
from dht.work import receipts_key
from tests.dht.samples import announcement, receipt

P, C = Identity.ephemeral(), Identity.ephemeral()


def now_receipt(**changes):
    epoch = DEFAULT_RULES.epoch_of(time.time())
    began = DEFAULT_RULES.start_of(epoch)
    return receipt(P, C, **{"epoch": epoch, "t_first": began, "t_last": began + 60, **changes})


def sealed(**changes):
    return seal(now_receipt(**changes), P, C)


async def eventually(condition, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.1)


async def accused(node) -> set[str]:
    return {peer for peer in (P.peer_id, C.peer_id) if await read_proofs(node, peer)}


async def is_accused(node) -> bool:
    return await accused(node) == {P.peer_id, C.peer_id}


def put(node, signed) -> None:
    """Store at one node alone, past the network."""
    storage = node._overlay.protocol.storage
    from hivemind.dht.routing import DHTID

    assert storage.store_subkey(DHTID.generate(source=signed.key), signed.subkey, signed.envelope, signed.expires_s)


async def test_a_member_that_stores_another_receipt_of_the_same_seq_publishes_the_proof():
    async with testnet(3) as (liar, keeper, reader), EquivocationWatch(keeper):
        assert await liar.store(sealed(amount=64, work=256))
        assert not await liar.store(sealed(amount=65, work=260))
        await eventually(lambda: is_accused(reader))
        assert all(proof.is_proven() for proof in await read_proofs(reader, P.peer_id))


async def test_a_reader_of_replicas_that_differ_publishes_the_proof():
    async with testnet(3) as (one, other, reader), EquivocationWatch(reader):
        put(one, sealed(amount=64, work=256))
        put(other, sealed(amount=65, work=260))
        assert not await accused(one)
        assert len(await reader.fetch(Kind.RECEIPT, receipts_key(P.peer_id, now_receipt().epoch))) == 1
        await eventually(lambda: is_accused(one))


async def test_what_is_no_lie_accuses_nobody():
    async with testnet(2) as (node, other), EquivocationWatch(node) as watch:
        plain = sealed()
        put(node, plain)
        for later in (plain, sealed(seq=2, amount=128, work=512), sealed(lane=9, amount=1, work=4)):
            await other.store(later)
        await other.store(sealed(seq=1, amount=3, work=12))  # older than what stands: nothing to compare it with
        watch.hear(plain.envelope, sealed(seq=2).envelope)
        watch.hear(plain.envelope, b"junk")
        watch.hear(seal(announcement(P), P).envelope, seal(announcement(P), P).envelope)
        await asyncio.sleep(0.3)
        assert not watch.counts
        assert not await accused(other)


async def test_a_receipt_that_nobody_signed_contradicts_none(monkeypatch):
    monkeypatch.setattr("dht.receipts.equivocations.RETRY_S", 0.05)
    async with testnet(3) as (keeper, holder, forger), EquivocationWatch(keeper) as watch:
        plain, lie = sealed(), now_receipt(amount=65, work=260)
        forged = place(lie, replace(Envelope.from_bytes(plain.envelope), body=lie.to_body()).to_bytes())
        put(holder, plain)
        put(forger, forged)
        assert len(await keeper.fetch(Kind.RECEIPT, receipts_key(P.peer_id, lie.epoch))) == 1
        assert not watch.counts, "it is dropped before it is compared"
        watch.hear(plain.envelope, forged.envelope)
        await eventually(lambda: asyncio.sleep(0, watch.counts["refused"] == 2))
        assert watch.counts["published"] == 0, "even where it came so far, nobody believes the proof"
        assert not await accused(holder)


async def test_a_proof_that_nobody_takes_does_not_count_as_published(monkeypatch):
    monkeypatch.setattr("dht.receipts.equivocations.RETRY_S", 0.05)
    tries = []

    async def refused(swarm, proof):
        tries.append(proof)
        return False

    monkeypatch.setattr("dht.receipts.equivocations.publish_proof", refused)
    async with testnet(1) as (node,), EquivocationWatch(node) as watch:
        watch.hear(sealed(amount=64, work=256).envelope, sealed(amount=65, work=260).envelope)
        await eventually(lambda: asyncio.sleep(0, watch.counts["refused"] == 2))
        assert len(tries) == 4, "both peers signed both, and each proof is tried twice"
        assert watch.counts["published"] == 0


async def test_an_error_that_nobody_foresaw_ends_no_watch(monkeypatch):
    honest, failures = equivocations.publish_proof, [ZeroDivisionError("a defect")]

    async def failing_once(swarm, proof):
        if failures:
            raise failures.pop()
        return await honest(swarm, proof)

    monkeypatch.setattr("dht.receipts.equivocations.publish_proof", failing_once)
    async with testnet(2) as (node, _), EquivocationWatch(node) as watch:
        watch.hear(sealed(amount=64, work=256).envelope, sealed(amount=65, work=260).envelope)
        await eventually(lambda: asyncio.sleep(0, watch.counts["published"] == 1))


async def test_a_liar_makes_nobody_publish_more_proofs_than_do():
    async with testnet(2) as (node, other), EquivocationWatch(node) as watch:
        for seq in range(1, 20):
            watch.hear(sealed(seq=seq, amount=64, work=256).envelope, sealed(seq=seq, amount=65, work=260).envelope)
        await eventually(lambda: asyncio.sleep(0, watch.counts["published"] == 2 * PROOFS_PER_PEER))
        await publish_proof(other, (await read_proofs(other, P.peer_id))[0])
        assert len(await read_proofs(other, P.peer_id)) == PROOFS_PER_PEER
        assert watch.counts["dropped"] == 38 - 2 * PROOFS_PER_PEER


@pytest.mark.parametrize("kind", [Kind.EQUIVOCATION])
async def test_a_made_up_proof_is_stored_nowhere(kind):
    async with testnet(2) as (node, other):
        honest, lie = Envelope.from_bytes(sealed().envelope), now_receipt(amount=65, work=260)
        stranger = Identity.ephemeral()
        signatures = (stranger.sign(Kind.RECEIPT, lie.to_body()),) * 2
        from dht.equivocation import prove

        proof = prove(P.peer_id, honest, Envelope(Kind.RECEIPT, lie.to_body(), signatures))
        assert not await node.store(seal(proof))
        assert await other.fetch(kind, (P.peer_id_bytes,)) == []
