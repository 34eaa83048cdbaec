import time

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage
from hypothesis import given
from hypothesis import strategies as st

from dht.hardening import storage as storage_module
from dht.hardening.storage import PLACES_BYTES, RecordStorage

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
    monkeypatch.setattr(storage_module, "MAX_BYTES", 1000)
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
