"""Receipts never signed, or by half, that say what cannot be, or stand where or when they do not belong."""

import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dht.identity import Identity
from dht.records import Kind
from dht.work import receipts_key
from tests.attacks.scene import LASTING, Evil, Scene, cosigned, enveloped, evil_with, holds, scene_of, work

PROVIDER, CONSUMER, STRANGER = (Identity.ephemeral() for _ in range(3))


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """One genuine receipt stands, so that a read which finds nothing at all is no success."""
    async with scene_of() as scene:
        assert await scene.honest[0].store(genuine())
        yield scene


def genuine():
    return cosigned(work(PROVIDER, CONSUMER, lane=0, t_first=began(), t_last=began()), PROVIDER, CONSUMER)


def began() -> int:
    """When the epoch began: the same second for a whole test, for what stands is compared with what was made."""
    return LASTING.start_of(LASTING.epoch_of(time.time()))


async def assert_refused(scene: Scene, *tries: Evil, provider: Identity = PROVIDER) -> None:
    parts = receipts_key(provider.peer_id, LASTING.epoch_of(time.time()))
    await scene.assert_refused(Kind.RECEIPT, parts, tries, [genuine().record] if provider is PROVIDER else [])


async def test_a_forger_who_makes_up_the_consumers_signature_is_stored_nowhere(scene: Scene):
    """Adversary 1, Forger."""
    tries = []
    for lane in range(1, 4):
        made = work(PROVIDER, CONSUMER, lane=lane)
        signatures = [PROVIDER.sign(2, made.to_body()), CONSUMER.sign(2, made.to_body())]
        signatures[lane % 2] = (os.urandom(64), bytes(64), STRANGER.sign(2, made.to_body()))[lane - 1]
        tries.append(enveloped(made, signatures, "signature"))
    standing = work(PROVIDER, CONSUMER, lane=4)
    stolen = [CONSUMER.sign(2, standing.to_body())]
    more = replace(standing, amount=640, work=2560, seq=2)
    tries.append(enveloped(more, [PROVIDER.sign(2, more.to_body()), *stolen], "signature"))
    await assert_refused(scene, *tries)


async def test_a_half_signer_counts_nothing(scene: Scene):
    """Adversary 2, HalfSigner."""
    tries = []
    for lane in range(1, 5):
        made = work(PROVIDER, CONSUMER, lane=lane)
        by_provider, by_consumer = PROVIDER.sign(2, made.to_body()), CONSUMER.sign(2, made.to_body())
        signatures = [(by_provider,), (by_provider, by_provider), (by_consumer,), ()][lane - 1]
        tries.append(enveloped(made, signatures, "signature"))
    await assert_refused(scene, *tries)


async def test_a_signature_for_anything_else_does_not_sign_a_receipt(scene: Scene):
    """Adversary 3, CrossDomain: the consumer did sign these very bytes, as an audit, an offer or a chunk."""
    tries = []
    for lane, domain_type in enumerate((1, 3, 4, 16, 128, 129, 130), start=1):
        made = work(PROVIDER, CONSUMER, lane=lane)
        body = made.to_body()
        tries.append(enveloped(made, (PROVIDER.sign(2, body), CONSUMER.sign(domain_type, body)), "signature"))
    await assert_refused(scene, *tries)


async def test_a_good_receipt_does_not_stand_under_another_providers_key(scene: Scene):
    """Adversary 4, WrongKey: neither in another's book, nor in another epoch, lane or consumer's place of one's own."""
    good = cosigned(work(PROVIDER, CONSUMER, lane=1), PROVIDER, CONSUMER)
    others = cosigned(work(STRANGER, CONSUMER, lane=1), STRANGER, CONSUMER)
    before = cosigned(work(PROVIDER, CONSUMER, epoch=good.record.epoch - 1, lane=2), PROVIDER, CONSUMER)
    await assert_refused(scene, evil_with(good, "key", key=others.key), provider=STRANGER)
    lane, who = (
        cosigned(made, PROVIDER, each).subkey
        for made, each in ((work(PROVIDER, CONSUMER, lane=2), CONSUMER), (work(PROVIDER, STRANGER, lane=1), STRANGER))
    )
    await assert_refused(scene, evil_with(good, "owner", subkey=lane), evil_with(good, "owner", subkey=who))
    assert before.key != good.key
    assert holds(scene.honest[0], before.key) == {}
    assert await scene.spread(evil_with(good, "key", key=before.key)) == [False, False]


async def test_an_inflator_and_his_friend_cannot_sign_more_than_can_be(scene: Scene):
    """Adversary 5, Inflator: both sign, so nothing but the arithmetic stands against them."""
    seconds = {"t_first": began(), "t_last": began() + 20}
    tries = [
        both_sign(work(PROVIDER, CONSUMER, lane=lane, **changes))
        for lane, changes in enumerate(
            (
                {"work": 257},
                {"work": 64},
                {"end": 8},
                {"amount": 10**8, "work": 4 * 10**8} | seconds,
                {"amount": 50_000 * 21 + 1, "work": 4 * (50_000 * 21 + 1)} | seconds,
                {"start": 4, "work": 0},
                {"amount": 2**53 + 1, "work": 4 * (2**53 + 1)},
                {"sessions": 0},
            ),
            start=1,
        )
    ]
    await assert_refused(scene, *tries)
    most = work(PROVIDER, CONSUMER, lane=99, amount=50_000 * 21, work=4 * 50_000 * 21, **seconds)
    assert await scene.honest[0].store(cosigned(most, PROVIDER, CONSUMER))


def both_sign(made, reason: str = "malformed", provider: Identity = PROVIDER, consumer: Identity = CONSUMER) -> Evil:
    return enveloped(made, (provider.sign(2, made.to_body()), consumer.sign(2, made.to_body())), reason)


async def test_nobody_is_paid_by_himself(scene: Scene):
    """Adversary 6, SelfDealer1."""
    await assert_refused(scene, both_sign(work(PROVIDER, PROVIDER, lane=1), consumer=PROVIDER))


async def test_work_of_epochs_to_come_or_outside_its_epoch_does_not_count(scene: Scene):
    """Adversary 7, Postdater; a backdater too."""
    epoch = LASTING.epoch_of(time.time())
    for ahead in (1, 2, 1000):
        later = LASTING.start_of(epoch + ahead)
        postdated = work(PROVIDER, CONSUMER, epoch=epoch + ahead, lane=ahead, t_first=later, t_last=later)
        key = receipts_key(PROVIDER.peer_id, epoch + ahead)
        await scene.assert_refused(Kind.RECEIPT, key, [both_sign(postdated, "from the future")], [])
    ended = LASTING.start_of(epoch + 1)
    await assert_refused(
        scene,
        both_sign(work(PROVIDER, CONSUMER, lane=1, t_first=began() - 121), "outside its epoch"),
        both_sign(work(PROVIDER, CONSUMER, lane=2, t_first=began(), t_last=ended + 121), "outside its epoch"),
    )
    long_ago = LASTING.start_of(epoch - 6)
    gone = work(PROVIDER, CONSUMER, epoch=epoch - 6, lane=3, t_first=long_ago, t_last=long_ago)
    kept = replace(both_sign(gone, "expired"), expires_s=time.time() + 3600)  # or not even the adversary would keep it
    await scene.assert_refused(Kind.RECEIPT, receipts_key(PROVIDER.peer_id, epoch - 6), [kept], [])


async def test_nobody_lengthens_or_shortens_a_receipts_life(scene: Scene):
    """Adversary 7, Expirer: the signatures are good, the time at which it should be forgotten is not."""
    tries = []
    for lane, by_s in enumerate((1.0, -1.0, 3600.0, -3600.0, 1 / 1024, 1e12), start=1):
        signed = cosigned(work(PROVIDER, CONSUMER, lane=lane), PROVIDER, CONSUMER)
        tries.append(evil_with(signed, "expiry", expires_s=signed.expires_s + by_s))
    await assert_refused(scene, *tries)
