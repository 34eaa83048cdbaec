"""The holes of stock hivemind's storage and routing, each beside what ours does. When one of them is mended there, its
test fails here: then look whether ours can go."""

import os
import time
from dataclasses import replace

import pytest
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE
from hivemind.utils import MSGPackSerializer
from hivemind.utils.crypto import RSAPrivateKey

from dht.hardening.protocol import dht_id_of
from dht.hardening.storage import RecordStorage
from dht.identity import Identity
from dht.validation import RecordValidator
from tests.dht.test_validation import GOOD, NOW, as_stored

KEY = DHTID.generate(source=b"key")
LATER = time.time() + 3600


@pytest.fixture
def clock(monkeypatch):
    """Set the time of hivemind's storages."""

    def set_to(now_s: float) -> None:
        monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", lambda: now_s)

    return set_to


def is_standing(storage, key=KEY) -> bool:
    found = storage.get(key)
    return found is not None and b"owner" in {subkey for subkey, _ in found.value.items()}


def test_hole_a_a_refused_record_shortens_the_life_of_the_standing_one(clock):
    stock, ours = DHTLocalStorage(), RecordStorage()
    for storage in (stock, ours):
        assert storage.store_subkey(KEY, b"owner", b"record", LATER + 60)
        assert not storage.store_subkey(KEY, b"owner", b"older", LATER + 10)
    clock(LATER + 30)
    assert not is_standing(stock)
    assert is_standing(ours)


def test_hole_b_a_plain_value_wipes_a_whole_key():
    stock, ours = DHTLocalStorage(), RecordStorage()
    for storage in (stock, ours):
        storage.store_subkey(KEY, b"owner", b"record", LATER)
    assert stock.store(KEY, b"junk", LATER + 60)
    assert stock.get(KEY).value == b"junk"
    assert not ours.store(KEY, b"junk", LATER + 60)
    assert is_standing(ours)


def test_hole_c_every_repetition_takes_memory():
    stock, ours = DHTLocalStorage(), RecordStorage()
    for storage in (stock, ours):
        for _ in range(100):
            storage.store_subkey(KEY, b"owner", b"record", LATER)
    assert len(stock.get(KEY).value.expiration_heap) == 100
    assert len(ours.get(KEY).value.expiration_heap) == 1


def test_hole_d_a_record_may_live_for_ever(clock):
    stock = DHTLocalStorage()
    assert stock.store_subkey(KEY, b"owner", b"record", LATER + 1e12)
    clock(LATER + 1e9)
    assert is_standing(stock)
    validator = RecordValidator(clock=lambda: NOW)
    assert validator.validate(as_stored(GOOD))
    assert not validator.validate(replace(as_stored(GOOD), expiration_time=NOW + 1e12))
    assert validator.refusals["expiry"] == 1


def test_hole_e_a_flooded_key_has_no_answer_that_a_message_carries():
    stock, ours = DHTLocalStorage(), RecordStorage()
    for number in range(7500):
        for storage in (stock, ours):
            storage.store_subkey(KEY, f"stranger {number}".encode(), os.urandom(600), LATER + number)
    sizes = [len(MSGPackSerializer.dumps(storage.get(KEY).value)) for storage in (stock, ours)]
    assert sizes[0] > DEFAULT_MAX_MSG_SIZE > sizes[1]


def test_hole_f_whoever_chooses_its_id_stands_next_to_any_key():
    attacker = PeerID.from_base58(Identity.ephemeral().peer_id)
    table = RoutingTable(DHTID.generate(), bucket_size=20, depth_modulo=5)
    table.add_or_update_node(KEY, attacker)
    assert table.get_nearest_neighbors(KEY, k=1) == [(KEY, attacker)]
    assert dht_id_of(attacker) != KEY  # All that ours believes: tests/dht/hardening/test_protocol.py.


def test_hole_g_a_validator_sees_the_hash_of_a_key_and_protects_nothing_there():
    stock = RSASignatureValidator(RSAPrivateKey())
    name = b"statistics " + stock.local_public_key
    unsigned = DHTRecord(DHTID.generate(source=name).to_bytes(), b"", b"a stranger's", LATER)
    assert stock.validate(unsigned)
    assert not stock.validate(replace(unsigned, key=name)), "it would be refused if it were seen"
    validator = RecordValidator(clock=lambda: NOW)
    assert not validator.validate(replace(as_stored(GOOD), key=DHTID.generate(source=b"elsewhere").to_bytes()))
    assert validator.refusals["key"] == 1


def test_a_store_whose_subkeys_are_of_two_types_ends_with_an_exception():
    stock = DHTLocalStorage()
    stock.store_subkey(KEY, b"owner", b"record", LATER)
    with pytest.raises(TypeError):
        stock.store_subkey(KEY, "owner", b"record", LATER)
