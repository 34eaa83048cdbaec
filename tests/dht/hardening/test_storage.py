import random
import time
from collections import Counter

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.hardening import storage as storage_module
from dht.hardening.storage import (
    ANSWER_BYTES,
    MAX_KEY_BYTES,
    MIN_CHARGE_BYTES,
    PLACES_BYTES,
    RecordStorage,
    _charge,
    some_that_fit,
)
from dht.hardening.tenants import Worth

KEY = DHTID.generate(source=b"key")
NOW = time.time() + 3600
"""Later than any run of these tests ends: what they store must not expire before they look."""


def standing(storage: DHTLocalStorage) -> dict[bytes, bytes]:
    found = storage.get(KEY)
    return {} if found is None else {subkey: value for subkey, (value, _) in found.value.items()}


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
        key, sender = DHTID.generate(source=number.to_bytes(2, "big")), number.to_bytes(2, "big")
        assert storage.store_subkey(key, b"owner", b"record", NOW + 2 * number + 1, sender)
    assert len(storage.data) < 50
    assert_counts_are_right(storage)


def assert_counts_are_right(storage: RecordStorage) -> None:
    """Count everything anew, the plain way."""
    tenants, keys, parts = storage._tenants, Counter(), Counter()
    assert tenants._under.keys() == storage.data.keys() == storage.key_to_heap.keys()
    for key, (records, _) in storage.data.items():
        under = tenants.under(key)
        assert {subkey: sent.expires_s for subkey, sent in under.sent.items()} == {
            subkey: expires_s for subkey, (_, expires_s) in records.data.items()
        }
        assert under.num_bytes == sum(_charge(value) for value, _ in records.data.values()) > 0
        within = Counter(sent.sender for sent in under.sent.values())
        assert under.holder in within
        keys[under.holder] += 1
        for subkey, (value, _) in records.data.items():
            parts[under.sent[subkey].sender] += _charge(value)
        if under.places is not None:
            assert under.places.weights() == within
            assert sum(under.bytes.weights().values()) == under.num_bytes
        assert under.num_bytes <= storage_module.MAX_KEY_BYTES
        assert len(records.data) <= min(storage_module.MAX_SUBKEYS, storage.max_subkeys)
    assert tenants._keys.weights() == keys
    assert tenants._parts.weights() == parts
    assert tenants.num_bytes == parts.total() <= storage_module.MAX_BYTES
    assert len(storage.data) <= storage_module.MAX_KEYS


STEPS = st.tuples(
    st.integers(0, 11),  # key
    st.integers(0, 5),  # subkey
    st.sampled_from([10, 700, 4000]),  # length
    st.integers(1, 40),  # expires, from the beginning
    st.sampled_from([b"", b"a", b"b", b"c"]),  # sender
    st.sampled_from(list(Worth)),
    st.integers(0, 3),  # passes before
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=80))
def test_whatever_is_sent_the_counts_are_right_and_who_is_refused_has_as_much_as_anyone(steps):
    with pytest.MonkeyPatch.context() as patch:
        for name, bound in (("MAX_KEYS", 8), ("MAX_SUBKEYS", 4), ("MAX_KEY_BYTES", 9000), ("MAX_BYTES", 20_000)):
            patch.setattr(storage_module, name, bound)
        storage, now = RecordStorage(), [NOW]
        patch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: now[0])
        for number, subkey, length, later_s, sender, worth, passes_s in steps:
            now[0] += passes_s
            key, value = DHTID.generate(source=bytes([number])), bytes(length)
            before = {each: storage.records(each) for each in list(storage.data)}
            before = {each: records for each, records in before.items() if records}
            num_refused, expires_s = storage.num_refused, NOW + later_s
            stored = storage.store_subkey(key, bytes([subkey]), value, expires_s, sender, worth)
            if stored:
                assert storage.standing(key, bytes([subkey]))[1] >= expires_s
            else:
                assert before == {each: storage.records(each) for each in list(storage.data)}, "nothing is lost"
            if storage.num_refused > num_refused and length == 10 and key not in before and len(before) == 8:
                weights = storage._tenants._keys.weights()
                more = storage._tenants.num_bytes + _charge(value) > 20_000
                assert more or max(weights.values()) - weights.get(sender, 0) < 2
            assert_counts_are_right(storage)


def ids(num: int, start: int = 1) -> list[DHTID]:
    """Keys that lie the farther from the id 0 the later they stand here."""
    return [DHTID(number) for number in range(start, start + num)]


def test_one_sender_who_has_filled_all_keys_makes_room_for_another_up_to_one_half(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 10)
    storage = RecordStorage(own_id=DHTID(0))
    assert [storage.store_subkey(key, b"o", b"record", NOW + 60, b"flood") for key in ids(12)] == [True] * 10 + [
        False
    ] * 2
    assert storage.num_refused == 2
    stored = [storage.store_subkey(key, b"o", b"record", NOW + 60, b"honest") for key in ids(7, 100)]
    assert stored == [True] * 5 + [False] * 2
    assert storage.num_refused == 4
    assert set(storage.data) == {*ids(5), *ids(5, 100)}, "the farthest went first"
    assert not storage.store_subkey(DHTID(50), b"o", b"record", NOW + 60, b"flood")
    assert storage.store_subkey(DHTID(50), b"o", b"record", NOW + 60, b"third")
    assert_counts_are_right(storage)


def test_who_has_one_key_fewer_takes_none_from_who_has_most(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 3)
    storage = RecordStorage()
    assert all(storage.store_subkey(key, b"o", b"record", NOW + 60, b"flood") for key in ids(3))
    stored = [storage.store_subkey(key, b"o", b"record", NOW + 60, b"other") for key in ids(2, 100)]
    assert stored == [True, False], "or two would take from each other for ever"


def test_what_a_sender_keeps_for_others_goes_before_its_own_and_proofs_go_last(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 12)
    storage = RecordStorage(own_id=DHTID(0))
    worths = [Worth.KEPT, Worth.OWN, Worth.LASTING] * 4
    for key, worth in zip(ids(12), worths, strict=True):
        assert storage.store_subkey(key, b"o", b"record", NOW + 60, b"flood", worth)
    gone = []
    for number, sender in enumerate([b"a", b"b", b"c"] * 2 + [b"d", b"e", b"f"], start=100):
        before = set(storage.data)
        assert storage.store_subkey(DHTID(number), b"o", b"record", NOW + 60, sender)
        gone.extend(int(key) for key in before - set(storage.data))
    assert gone == [10, 7, 4, 1, 11, 8, 5, 2, 12]


def test_what_a_sender_signs_itself_takes_the_room_of_what_it_keeps_for_others(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 4)
    storage = RecordStorage(own_id=DHTID(0))
    for key, sender in zip(ids(4), [b"keeper", b"flood"] * 2, strict=True):
        assert storage.store_subkey(key, b"o", b"record", NOW + 60, sender)
    assert not storage.store_subkey(DHTID(100), b"o", b"record", NOW + 60, b"keeper")
    stored = [storage.store_subkey(key, b"o", b"record", NOW + 60, b"keeper", Worth.OWN) for key in ids(3, 100)]
    assert stored == [True, True, False]
    assert set(storage.data) == {DHTID(2), DHTID(4), *ids(2, 100)}
    assert storage.store_subkey(DHTID(50), b"o", b"record", NOW + 60, b"keeper", Worth.LASTING)
    assert_counts_are_right(storage)


def test_what_a_sender_signs_itself_takes_the_room_of_what_it_keeps_for_others_within_a_key_and_in_bytes(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_SUBKEYS", 2)
    storage = RecordStorage(own_id=DHTID(0))
    for subkey in (b"a", b"b"):
        assert storage.store_subkey(KEY, subkey, bytes(1000), NOW + 60, b"keeper")
    assert not storage.store_subkey(KEY, b"c", bytes(1000), NOW + 60, b"keeper")
    assert storage.store_subkey(KEY, b"c", bytes(1000), NOW + 60, b"keeper", Worth.OWN)
    monkeypatch.setattr(storage_module, "MAX_BYTES", 4 * 1024)
    assert all(storage.store_subkey(key, b"o", bytes(1000), NOW + 60, b"keeper") for key in ids(2))
    assert not storage.store_subkey(DHTID(100), b"o", bytes(1000), NOW + 60, b"keeper")
    assert storage.store_subkey(DHTID(100), b"o", bytes(1000), NOW + 60, b"keeper", Worth.OWN)
    assert set(storage.data) == {KEY, DHTID(1), DHTID(100)}
    assert_counts_are_right(storage)


def test_a_key_in_which_others_stand_too_stays_when_its_first_sender_makes_room(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 6)
    storage = RecordStorage(own_id=DHTID(0))
    for key in ids(6):
        assert storage.store_subkey(key, b"flood", b"record", NOW + 60, b"flood")
    assert storage.store_subkey(DHTID(6), b"honest", b"record", NOW + 60, b"honest")
    assert storage.store_subkey(DHTID(100), b"o", b"record", NOW + 60, b"third")
    assert storage.standing(DHTID(6), b"honest")
    assert storage.standing(DHTID(5), b"flood") is None
    assert_counts_are_right(storage)


def test_what_has_expired_is_no_longer_counted_for_its_sender(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEYS", 4)
    storage = RecordStorage()
    assert all(storage.store_subkey(key, b"o", b"record", NOW + 60, b"one") for key in ids(4))
    assert not storage.store_subkey(DHTID(50), b"o", b"record", NOW + 90, b"one")
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 61)
    assert all(storage.store_subkey(key, b"o", b"record", NOW + 90, b"one") for key in ids(4, 50))
    assert_counts_are_right(storage)


def test_one_sender_who_has_filled_all_bytes_makes_room_for_another(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_BYTES", 10 * 4096)
    storage = RecordStorage(own_id=DHTID(0))
    assert [storage.store_subkey(key, b"o", bytes(4096), NOW + 60, b"flood") for key in ids(11)] == [True] * 10 + [
        False
    ]
    stored = [storage.store_subkey(key, b"o", bytes(4096), NOW + 60, b"honest") for key in ids(7, 100)]
    assert stored == [True] * 5 + [False] * 2
    assert set(storage.data) == {*ids(5), *ids(5, 100)}
    assert_counts_are_right(storage)


def test_bytes_that_were_sent_into_a_key_of_another_are_the_senders_own(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_BYTES", 10 * 4096)
    storage = RecordStorage(own_id=DHTID(0))
    assert storage.store_subkey(KEY, b"honest", bytes(4096), NOW + 60, b"honest")
    assert all(storage.store_subkey(KEY, bytes([n]), bytes(4096), NOW + 60, b"flood") for n in range(9))
    assert storage.store_subkey(DHTID(1), b"o", bytes(4096), NOW + 60, b"third")
    assert standing(storage) == {b"honest": bytes(4096)}
    assert_counts_are_right(storage)


def test_one_sender_who_has_filled_a_key_makes_room_there_for_another_up_to_one_half(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_SUBKEYS", 6)
    storage = RecordStorage()
    flood = [storage.store_subkey(KEY, bytes([n]), b"record", NOW + 90 - n, b"flood") for n in range(8)]
    assert flood == [True] * 6 + [False] * 2
    stored = [storage.store_subkey(KEY, bytes([n]), b"record", NOW + 60, b"honest") for n in range(50, 55)]
    assert stored == [True] * 3 + [False] * 2
    assert set(standing(storage)) == {bytes([n]) for n in (0, 1, 2, 50, 51, 52)}, "what expires first went first"
    assert storage.store_subkey(KEY, bytes([2]), b"newer", NOW + 99, b"flood"), "what stands there is renewed"
    assert_counts_are_right(storage)


def test_one_sender_who_has_filled_the_bytes_of_a_key_makes_room_there_for_another(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_KEY_BYTES", 10 * 4096)
    storage = RecordStorage()
    assert all(storage.store_subkey(KEY, bytes([n]), bytes(4096), NOW + 60, b"flood") for n in range(10))
    assert not storage.store_subkey(KEY, b"more", b"record", NOW + 60, b"flood")
    stored = [storage.store_subkey(KEY, bytes([n]), bytes(4096), NOW + 60, b"honest") for n in range(50, 57)]
    assert stored == [True] * 5 + [False] * 2
    assert_counts_are_right(storage)


def test_a_record_that_its_author_renews_is_counted_for_the_author_from_then_on():
    storage = RecordStorage()
    assert storage.store_subkey(KEY, b"o", b"record", NOW + 60, b"flood")
    assert storage.store_subkey(KEY, b"o", b"newer", NOW + 61, b"keeper")
    assert storage._tenants.sender(KEY, b"o") == b"flood"
    assert storage.store_subkey(KEY, b"o", b"newest", NOW + 62, b"author", Worth.OWN)
    assert storage._tenants.sender(KEY, b"o") == b"author"
    assert_counts_are_right(storage)


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
    assert storage.store_subkey(keys[11], b"owner", bytes(100), NOW + 90), "keys that have expired"
    assert_counts_are_right(storage)


def test_what_has_expired_in_keys_that_have_not_is_noticed_now_and_then(monkeypatch):
    monkeypatch.setattr(storage_module, "MAX_BYTES", 10 * MIN_CHARGE_BYTES)
    storage = RecordStorage()
    for number in range(10):
        assert storage.store_subkey(KEY, bytes([number]), bytes(100), NOW + 60 + 10 * (number == 9))
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: NOW + 61)
    assert not storage.store_subkey(DHTID(1), b"owner", bytes(100), NOW + 90)
    monkeypatch.setattr("dht.hardening.storage.time.monotonic", lambda: storage._counted_s + 61)
    assert storage.store_subkey(DHTID(1), b"owner", bytes(100), NOW + 90)


def test_digests_of_keys_that_have_expired_are_forgotten(monkeypatch):
    storage = RecordStorage()
    for number in range(500):
        now_s = NOW + 2 * number
        monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda now_s=now_s: now_s)
        key = DHTID.generate(source=number.to_bytes(2, "big"))
        assert storage.store_subkey(key, b"owner", b"record", now_s + 1)
        assert storage.digest(key)
    assert len(storage._digests) < 50
