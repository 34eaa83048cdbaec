"""What a comparison with the DHT finds of what a publisher left out, whatever it put into it instead."""

import random
import time

import pytest

from dht.identity import Identity
from dht.receipts.checking import SignatureChecker
from dht.receipts.snapshots import Content
from dht.receipts.spot_checks import MAX_ROUNDS, MIN_MET, NUM_CHECKS, Compared, Elsewhere, SpotCheck, spot_check
from dht.rules import DEFAULT_RULES
from dht.snapshot import NO_SCORES, Snapshot, digest_of
from dht.testnet import testnet
from tests.dht.receipts.made import put, sealed

PUBLISHER, C = Identity.ephemeral(), Identity.ephemeral()
PROVIDERS = [Identity.ephemeral() for _ in range(6)]
NAMES = [provider.peer_id for provider in PROVIDERS]
EPOCH = DEFAULT_RULES.epoch_of(time.time())
RECEIPTS = [
    sealed(provider, C, lane=lane, epochs_ago=ago) for provider in PROVIDERS for ago in (1, 2) for lane in range(3)
]


def content(receipts, first_epoch=EPOCH - 2) -> Content:
    envelopes = [signed.envelope for signed in receipts]
    digest = digest_of(envelopes)
    record = Snapshot(PUBLISHER.peer_id, first_epoch, EPOCH - 1, len(envelopes), digest, NO_SCORES)
    return Content(record, tuple(receipts))


@pytest.fixture
async def check():
    """Compares content with a DHT on which receipts of six providers in two epochs stand."""
    async with testnet(2) as (holder, reader), SignatureChecker() as checker:
        for signed in RECEIPTS:
            put(holder, signed)

        async def checked(content, *sources, keys=(), more=()):
            for signed in more:
                put(holder, signed)
            return await spot_check(reader, content, Elsewhere(sources, keys), random.Random(1), checker)

        yield checked


async def test_a_whole_snapshot_is_sound_and_that_says_something(check):
    found = await check(content(RECEIPTS), NAMES)
    assert found.is_sound
    assert found.is_enough
    assert found.elsewhere.num_met >= MIN_MET
    assert found.both.num_slots == 3 * found.both.num_met
    assert found.both.num_missing == 0


async def test_who_leaves_out_a_provider_or_some_slots_of_all_is_found(check):
    without_one = content([signed for signed in RECEIPTS if signed.record.provider != NAMES[0]])
    assert not (await check(without_one, NAMES)).is_sound
    thinned = content([signed for signed in RECEIPTS if signed.record.lane != 2])
    found = await check(thinned)
    assert not found.own.is_sound, "at keys of its own"
    assert found.elsewhere == Compared()


async def test_something_older_than_what_stands_is_missing(check):
    newer = sealed(PROVIDERS[1], C, lane=1, epochs_ago=2, seq=5, amount=128, work=512)
    assert (await check(content(RECEIPTS), NAMES, more=[newer])).both.num_missing == 1


async def test_a_check_that_meets_nothing_proves_nothing(check):
    strangers = [Identity.ephemeral().peer_id for _ in range(2000)]
    found = await check(content([]), strangers)
    assert found.is_sound
    assert not found.is_enough
    assert NUM_CHECKS * (MAX_ROUNDS - 1) < found.elsewhere.num_keys <= NUM_CHECKS * MAX_ROUNDS, "and it is bounded"


async def test_receipts_of_its_own_ids_do_not_hide_what_a_publisher_leaves_out(check):
    liar = Identity.ephemeral()
    padding = [sealed(liar, C, lane=lane, epochs_ago=1) for lane in range(300)]
    found = await check(content(padding), NAMES, more=padding)
    assert found.own.num_slots == 300
    assert found.own.is_sound
    assert not found.is_sound


async def test_ids_that_have_done_nothing_do_not_hide_who_announces_or_is_in_anothers_snapshot(check):
    made_up = [Identity.ephemeral().peer_id for _ in range(5000)]
    empty = content([])
    assert not (await check(empty, NAMES, made_up)).is_sound
    keys = [(name, EPOCH - 1) for name in NAMES]
    assert not (await check(empty, [], made_up, keys=keys)).is_sound


def test_one_in_a_hundred_may_have_come_late_in_either_half():
    assert Compared(4, 4, 100, 1).is_sound
    assert not Compared(4, 4, 99, 1).is_sound
    late, much = Compared(4, 8, 10, 1), Compared(4, 8, 10_000, 0)
    assert not SpotCheck(much, late).is_sound
    assert not SpotCheck(late, much).is_sound
    assert SpotCheck(much, much).is_sound
    assert not SpotCheck(much, Compared(16, MIN_MET - 1, 10_000)).is_enough
