"""Who signs two receipts for the same proves it by himself; who has not cannot be made to look so."""

from dataclasses import replace

from dht.equivocation import prove
from dht.identity import Identity, peer_id_to_bytes
from dht.records import Envelope, Kind, seal
from tests.attacks.scene import LASTING, cosigned, enveloped, holds, scene_of, work

PROVIDER, CONSUMER, VICTIM = (Identity.ephemeral() for _ in range(3))


def contradiction() -> tuple[Envelope, Envelope]:
    """Two receipts of one provider and one consumer for the same lane, epoch, kind and number."""
    one = work(PROVIDER, CONSUMER)
    other = replace(one, amount=65, work=260)
    sealed = [cosigned(each, PROVIDER, CONSUMER) for each in (one, other)]
    return Envelope.from_bytes(sealed[0].envelope), Envelope.from_bytes(sealed[1].envelope)


async def test_anyone_may_publish_the_proof_and_every_reader_finds_it():
    """Adversary 11, Equivocator: both authors have signed both, and somebody else has seen it."""
    one, other = contradiction()
    async with scene_of() as scene:
        for accused in (PROVIDER, CONSUMER):
            signed = seal(prove(accused.peer_id, one, other), rules=LASTING)
            assert await scene.honest[1].store(signed)
            assert holds(scene.honest[0], signed.key) == {signed.subkey: signed.envelope}
            async with scene.fresh_reader() as reader:
                assert await reader.fetch(Kind.EQUIVOCATION, signed.record.key_parts()) == [signed.record]
                assert set(reader.validator.refusals) <= {"rules not known"}  # what it was handed while it joined
        receipt = cosigned(work(PROVIDER, CONSUMER), PROVIDER, CONSUMER)
        assert signed.expires_s == LASTING.end_of_evidence(receipt.record.epoch) > receipt.expires_s


async def test_the_equivocator_cannot_wipe_or_outlive_the_proof():
    """Adversary 11, Equivocator: it holds a replica of the proof against itself, and denies it."""
    one, other = contradiction()
    async with scene_of() as scene:
        signed = seal(prove(PROVIDER.peer_id, one, other), rules=LASTING)
        assert await scene.honest[0].store(signed)
        scene.adversary._overlay.protocol.storage.clear()
        for by_s in (-3600.0, 3600.0):
            denied = enveloped(signed.record, (), "expiry")
            assert await scene.spread(replace(denied, expires_s=signed.expires_s + by_s)) == [False, False]
        async with scene.fresh_reader() as reader:
            assert await reader.fetch(Kind.EQUIVOCATION, (peer_id_to_bytes(PROVIDER.peer_id),)) == [signed.record]


async def test_nobody_who_has_not_lied_can_be_made_a_liar():
    """Adversary 11: fake proofs against one who has signed at most one receipt for each number."""
    made = work(VICTIM, CONSUMER)
    one = Envelope.from_bytes(cosigned(made, VICTIM, CONSUMER).envelope)
    inflated = replace(made, amount=6400, work=25600)
    next_one = Envelope.from_bytes(cosigned(replace(inflated, seq=2), VICTIM, CONSUMER).envelope)
    made_up = Envelope(2, inflated.to_body(), (one.signatures[0], CONSUMER.sign(2, inflated.to_body())))
    forged = prove(VICTIM.peer_id, one, made_up)
    first, second = sorted((one, next_one), key=lambda each: each.body)
    two_numbers = replace(
        forged, first=first.body, first_signature=first.signatures[0],
        second=second.body, second_signature=second.signatures[0],
    )  # fmt: skip
    by_the_consumer = prove(CONSUMER.peer_id, one, made_up)
    same_twice = replace(forged, first=one.body, second=one.body)
    fakes = [
        enveloped(forged, (), "signature"),
        enveloped(replace(forged, first_signature=forged.second_signature), (), "signature"),
        enveloped(replace(by_the_consumer, accused=VICTIM.peer_id), (), "signature"),
        enveloped(replace(forged, accused=PROVIDER.peer_id), (), "malformed"),
        enveloped(replace(forged, first=forged.second, second=forged.first), (), "malformed"),
        enveloped(forged, (CONSUMER.sign(4, forged.to_body()),), "signature"),
    ]
    async with scene_of() as scene:
        for fake in (*fakes, *(misplaced(each, forged) for each in (two_numbers, same_twice))):
            accused = fake.key
            assert await scene.spread(fake) == [False, False]
            for node in scene.honest:
                assert node.validator.refusals[fake.reason] >= 1
                assert holds(node, accused) == {}
        async with scene.fresh_reader() as reader:
            for accused in (VICTIM, PROVIDER):
                assert await reader.fetch(Kind.EQUIVOCATION, (peer_id_to_bytes(accused.peer_id),)) == []
            assert reader.validator.refusals.total() >= 1


def misplaced(proof, like):
    """A proof that says nothing of when it expires stands where another would."""
    signed = enveloped(like, (), "malformed")
    return replace(signed, subkey=proof.subkey, envelope=Envelope(4, proof.to_body(), ()).to_bytes())
