import random
import time

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from dht.hardening import storage as storage_module
from dht.hardening.storage import (
    ANSWER_BYTES,
    MAX_KEY_BYTES,
    MIN_CHARGE_BYTES,
    PLACES_BYTES,
    RecordStorage,
    some_that_fit,
)

KEY = DHTID.generate(source=b"key")
NOW = time.time() + 3600
"""Later than any run of these tests ends: what they store must not expire before they look."""


def standing(storage: DHTLocalStorage) -> dict[bytes, bytes]:
    found = storage.get(KEY)
    return {} if found is None else {subkey: value for subkey, (value, _) in found.value.items()}


def test_stock_hivemind_still_has_the_holes_that_this_mends():
    stock = DHTLocalStorage()
    stock.store_subkey(KEY, b"owner", b"record", NOW + 60)
    assert stock.store(KEY, b"plain", NOW + 120)
    assert stock.get(KEY).value == b"plain"
    stock.clear()
    for _ in range(10):
        stock.store_subkey(KEY, b"owner", b"record", NOW + 60)
    assert len(stock.get(KEY).value.expiration_heap) == 10
    with pytest.raises(TypeError):
        stock.store_subkey(KEY, "owner", b"record", NOW + 60)


def test_an_older_record_neither_replaces_nor_shortens_the_standing_one(monkeypatch):
    storage = RecordStorage()
    assert storage.store_subkey(KEY, b"owner", b"new", NOW + 60)
    assert not storage.store_subkey(KEY, b"owner", b"old", NOW + 10)
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 30)
    assert standing(storage) == {b"owner": b"new"}
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 61)
    assert standing(storage) == {}


def test_a_plain_value_is_refused_and_wipes_nothing():
    storage = RecordStorage()
    storage.store_subkey(KEY, b"owner", b"record", NOW + 60)
    assert not storage.store(KEY, b"plain", NOW + 600)
    assert not storage.store(KEY, b"plain", NOW + 600, subkey="text")
    assert not storage.store(KEY, {"no": "bytes"}, NOW + 600, subkey=b"owner")
    assert standing(storage) == {b"owner": b"record"}


def test_a_hundred_thousand_identical_stores_take_no_memory():
    storage = RecordStorage()
    for _ in range(100_000):
        assert storage.store_subkey(KEY, b"owner", b"record", NOW + 60)
    assert len(storage.expiration_heap) == 1
    assert len(storage.get(KEY).value.expiration_heap) == 1


def test_an_equal_expiry_with_another_value_is_refused():
    storage = RecordStorage()
    assert storage.store_subkey(KEY, b"owner", b"one", NOW + 60)
    assert not storage.store_subkey(KEY, b"owner", b"two", NOW + 60)
    assert standing(storage) == {b"owner": b"one"}


def test_a_full_key_takes_no_newcomer_but_lets_those_who_stand_there_refresh(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_SUBKEYS", 3)
    storage = RecordStorage()
    for owner in (b"a", b"b", b"c"):
        assert storage.store_subkey(KEY, owner, b"record", NOW + 60)
    assert not storage.store_subkey(KEY, b"d", b"record", NOW + 60)
    assert storage.store_subkey(KEY, b"a", b"newer", NOW + 70)
    assert storage.store_subkey(DHTID.generate(source=b"another key"), b"d", b"record", NOW + 60)


def test_a_swarm_may_let_fewer_stand_under_a_key_and_not_more(monkeypatch):
    storage = RecordStorage()
    storage.max_subkeys = 2
    stored = [storage.store_subkey(KEY, bytes([owner]), b"record", NOW + 60) for owner in range(3)]
    assert stored == [True, True, False]
    monkeypatch.setattr(storage_module, "MAX_SUBKEYS", 3)
    storage.max_subkeys = 1000
    stored = [storage.store_subkey(KEY, bytes([owner]), b"record", NOW + 60) for owner in range(5)]
    assert stored == [True, True, True, False, False]


def test_the_bytes_under_a_key_are_bounded(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEY_BYTES", 10_000)
    storage = RecordStorage()
    stored = [storage.store_subkey(KEY, bytes([owner]), bytes(3000), NOW + 60) for owner in range(10)]
    assert stored == [True, True, True] + [False] * 7


def test_longer_records_in_place_of_shorter_ones_do_not_fill_a_key_beyond_its_bytes():
    storage = RecordStorage()
    for owner in range(4096):
        assert storage.store_subkey(KEY, owner.to_bytes(2, "big"), bytes(100), NOW + 60)
    for owner in range(4096):
        storage.store_subkey(KEY, owner.to_bytes(2, "big"), bytes(3800), NOW + 61)
    assert sum(len(value) for value in standing(storage).values()) <= MAX_KEY_BYTES
    assert len(standing(storage)) == 4096


def test_in_a_key_that_strangers_have_filled_who_stands_there_is_renewed_with_some_bytes_more():
    storage = RecordStorage()
    assert storage.store_subkey(KEY, b"short", bytes(400), NOW + 60)
    assert storage.store_subkey(KEY, b"long", bytes(1200), NOW + 60)
    flood = [storage.store_subkey(KEY, n.to_bytes(2, "big"), bytes(1 + n % 4096), NOW + 60) for n in range(4094)]
    assert not all(flood)
    for later_s in range(1, 4):
        assert storage.store_subkey(KEY, b"short", bytes(400 + 70 * later_s), NOW + 60 + later_s)
        assert storage.store_subkey(KEY, b"long", bytes(1200 + 20 * later_s), NOW + 60 + later_s)
    assert not storage.store_subkey(KEY, b"long", bytes(4000), NOW + 90)
    assert storage.store_subkey(KEY, b"long", bytes(10), NOW + 90)


def test_what_has_expired_under_a_full_key_makes_room_again(monkeypatch):
    storage = RecordStorage()
    assert storage.store_subkey(KEY, b"owner", bytes(100), NOW + 600)
    for n in range(700):
        storage.store_subkey(KEY, n.to_bytes(2, "big"), bytes(4000), NOW + 60)
    assert not storage.store_subkey(KEY, b"owner", bytes(4000), NOW + 700)
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 61)
    assert storage.store_subkey(KEY, b"owner", bytes(4000), NOW + 700)
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 701)
    stored = [storage.store_subkey(KEY, n.to_bytes(2, "big"), bytes(4000), NOW + 800) for n in range(700)]
    assert sum(stored) == MAX_KEY_BYTES // 4096


def test_in_a_key_that_authors_share_nobody_has_more_than_a_share():
    storage = RecordStorage({KEY: 3})
    alice, bob = b"a" * 38, b"b" * 38
    stored = [storage.store_subkey(KEY, alice + bytes([n]), b"record", NOW + 60) for n in range(5)]
    assert stored == [True] * 3 + [False] * 2
    assert storage.store_subkey(KEY, alice + bytes([0]), b"newer", NOW + 70), "what stands there is renewed"
    assert storage.store_subkey(KEY, bob + bytes([0]), b"record", NOW + 60)
    other = DHTID.generate(source=b"another key")
    assert all(storage.store_subkey(other, alice + bytes([n]), b"record", NOW + 60) for n in range(5))


def test_longer_records_in_place_of_shorter_ones_do_not_fill_a_node_beyond_its_bytes(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_BYTES", 10 * MIN_CHARGE_BYTES)
    storage = RecordStorage()
    keys = [DHTID.generate(source=bytes([number])) for number in range(10)]
    assert all(storage.store_subkey(key, b"owner", bytes(100), NOW + 60) for key in keys)
    assert not any(storage.store_subkey(key, b"owner", bytes(4000), NOW + 61) for key in keys)
    assert all(storage.store_subkey(key, b"owner", bytes(600), NOW + 61) for key in keys)


@given(st.integers(0, 30_000), st.integers(0, 2**32))
def test_an_answer_that_cannot_hold_a_key_holds_what_fits_of_it(room, seed):
    records = [(bytes([n]) * 38, bytes(100 * n), NOW + n) for n in range(20)]
    chosen = some_that_fit(records, room, random.Random(seed))
    with DictionaryDHTValue().freeze() as packed:
        for record in chosen:
            packed.store(*record)
    assert len(MSGPackSerializer.dumps(packed)) <= max(room, ANSWER_BYTES)
    left = room - sum(len(value) for _, value, _ in chosen)
    assert all(record in chosen or left < len(record[1]) + 20 * 62 + ANSWER_BYTES for record in records)


def test_whom_an_answer_leaves_out_is_chance():
    records = [(bytes([n]), bytes(1000), NOW) for n in range(20)]
    draws = [some_that_fit(records, 5000, random.Random(seed)) for seed in range(100)]
    assert {subkey for chosen in draws for subkey, _, _ in chosen} == {subkey for subkey, _, _ in records}


def test_what_is_counted_of_keys_that_have_expired_is_forgotten(monkeypatch):
    storage = RecordStorage()
    for number in range(500):
        monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda now_s=NOW + 2 * number: now_s)
        key = DHTID.generate(source=number.to_bytes(2, "big"))
        assert storage.store_subkey(key, b"owner", b"record", NOW + 2 * number + 1)
    assert len(storage._charges) < 50


def test_no_member_begins_more_than_its_share_of_keys(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS_OF_ONE", 3)
    storage = RecordStorage()
    keys = [DHTID.generate(source=bytes([each])) for each in range(8)]
    begun = [storage.store_subkey(key, b"a", b"record", NOW + 60, b"one") for key in keys[:5]]
    assert begun == [True] * 3 + [False] * 2
    assert storage.store_subkey(keys[0], b"b", b"record", NOW + 60, b"one"), "a key that stands is open to all"
    assert storage.store_subkey(keys[3], b"a", b"record", NOW + 60, b"another")
    assert storage.store_subkey(keys[3], b"b", b"record", NOW + 60, b"one")
    assert all(storage.store_subkey(key, b"a", b"record", NOW + 60) for key in keys[4:]), "our own"
    now_s = storage._asked_s + 61
    monkeypatch.setattr("dht.hardening.storage.time.monotonic", lambda: now_s)
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 61)
    later = [storage.store_subkey(key, b"a", b"record", NOW + 90, b"one") for key in keys[:4]]
    assert later == [True] * 3 + [False], "what has expired no longer counts"


def test_who_began_keys_that_have_expired_is_forgotten(monkeypatch):
    storage = RecordStorage()
    for number in range(500):
        monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda now_s=NOW + 2 * number: now_s)
        key, sender = DHTID.generate(source=number.to_bytes(2, "big")), number.to_bytes(2, "big")
        assert storage.store_subkey(key, b"owner", b"record", NOW + 2 * number + 1, sender)
    assert len(storage._begun_by) + len(storage._num_begun) < 100


def test_the_number_of_keys_is_bounded(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 2)
    storage = RecordStorage()
    keys = [DHTID.generate(source=bytes([each])) for each in range(3)]
    assert [storage.store_subkey(key, b"owner", b"record", NOW + 60) for key in keys] == [True, True, False]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.integers(1, 5), st.sampled_from([b"x", b"y"])), max_size=30)
)
def test_whatever_the_order_the_latest_expiry_of_each_owner_stands(stores):
    storage, latest = RecordStorage(), {}
    for owner, later_s, value in stores:
        stored = storage.store_subkey(KEY, owner, value, NOW + 60 + later_s)
        known = latest.get(owner)
        if known is None or later_s > known[0]:
            assert stored
            latest[owner] = (later_s, value)
        else:
            assert stored == (known == (later_s, value))
    assert standing(storage) == {owner: value for owner, (_, value) in latest.items()}
    assert len(storage.expiration_heap) <= 1 + len(stores)


def test_replacing_a_record_again_and_again_grows_nothing():
    storage = RecordStorage()
    for seq in range(2000):
        assert storage.store_subkey(KEY, b"owner", b"record", NOW + seq)
    assert len(storage.get(KEY).value.expiration_heap) < 50
    assert len(storage.expiration_heap) < 50
    assert standing(storage) == {b"owner": b"record"}


def test_a_digest_tells_places_and_expiries_and_behind_them_values_and_nothing_else(monkeypatch):
    one, other = RecordStorage(), RecordStorage()
    assert one.digest(KEY) == b""
    for storage, subkeys in ((one, (b"a", b"b")), (other, (b"b", b"a"))):
        for subkey in subkeys:
            storage.store_subkey(KEY, subkey, b"record", NOW + ord(subkey))
    assert one.digest(KEY) == other.digest(KEY) != b""
    other.store_subkey(KEY, b"a", b"record", NOW + 999)
    assert one.digest(KEY) != other.digest(KEY)
    one.store_subkey(KEY, b"a", b"another", NOW + 999)
    assert one.digest(KEY)[:PLACES_BYTES] == other.digest(KEY)[:PLACES_BYTES]
    assert one.digest(KEY) != other.digest(KEY)
    two = RecordStorage()
    two.store_subkey(KEY, b"a", b"record", NOW + 1)
    assert two.digest(KEY) != b""
    two.clear()
    assert two.digest(KEY) == b""
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 500)
    monkeypatch.setattr("dht.hardening.storage.time.time", lambda: NOW + 500)
    assert one.digest(KEY) == storage_module.digest_of([(b"a", b"another", NOW + 999)])


def test_all_keys_together_hold_no_more_bytes_than_a_node_gives(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_BYTES", 10 * MIN_CHARGE_BYTES)
    storage = RecordStorage()
    keys = [DHTID.generate(source=bytes([number])) for number in range(20)]
    stored = [storage.store_subkey(key, b"owner", bytes(100), NOW + 60) for key in keys]
    assert stored == [True] * 10 + [False] * 10
    assert storage.store_subkey(keys[0], b"owner", bytes(100), NOW + 61), "what stands there is renewed"
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 60.5)
    assert not storage.store_subkey(keys[11], b"owner", bytes(100), NOW + 90)
    monkeypatch.setattr("dht.hardening.storage.time.monotonic", lambda: storage._counted_s + 61)
    assert storage.store_subkey(keys[11], b"owner", bytes(100), NOW + 90)


def test_digests_of_keys_that_have_expired_are_forgotten(monkeypatch):
    storage = RecordStorage()
    for number in range(500):
        now_s = NOW + 2 * number
        monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda now_s=now_s: now_s)
        key = DHTID.generate(source=number.to_bytes(2, "big"))
        assert storage.store_subkey(key, b"owner", b"record", now_s + 1)
        assert storage.digest(key)
    assert len(storage._digests) < 50
