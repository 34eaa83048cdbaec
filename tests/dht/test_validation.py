import time
from dataclasses import replace

import msgpack
import pytest
from hivemind.dht.crypto import DHTRecord
from hivemind.dht.validation import CompositeValidator
from hypothesis import given
from hypothesis import strategies as st

from dht.codec import encode
from dht.identity import Identity
from dht.parameters import SwarmParameters
from dht.records import Envelope, ManifestRecord, SignedRecord, dht_id, key_bytes, place, seal
from dht.validation import RecordValidator
from tests.dht.samples import MANIFEST, announcement

NOW = 1_800_000_000
OWNER = Identity.ephemeral()
MODEL = ManifestRecord(MANIFEST, OWNER.peer_id, NOW, 60, "gpt2", "gpt2", 12, 768, 50257)
PARAMETERS = SwarmParameters(OWNER.peer_id, NOW - 10**7, 10**8, "lab", private=False)
GOOD = seal(announcement(OWNER, t=NOW), OWNER)


def as_stored(signed: SignedRecord) -> DHTRecord:
    return DHTRecord(dht_id(signed.key), msgpack.packb(signed.subkey), signed.envelope, float(signed.expires_s))


def refusal(record: DHTRecord, now_s: float = NOW) -> str | None:
    validator = RecordValidator(clock=lambda: now_s)
    accepted = validator.validate(record)
    assert accepted == (validator.refusals.total() == 0)
    return next(iter(validator.refusals), None)


def forged(signed: SignedRecord, **changes: object) -> DHTRecord:
    """Change what was signed and keep the signature."""
    record = replace(signed.record, **changes)
    opened = Envelope.from_bytes(signed.envelope)
    return as_stored(place(record, Envelope(record.KIND, record.to_body(), opened.signatures).to_bytes()))


@pytest.mark.parametrize("record", [announcement(OWNER, t=NOW), MODEL, PARAMETERS])
def test_every_registered_kind_is_accepted_where_it_belongs(record):
    assert refusal(as_stored(seal(record, OWNER))) is None


def test_a_plain_value_is_refused_on_every_key():
    assert refusal(replace(as_stored(GOOD), subkey=msgpack.packb(None))) == "no subkey"
    assert refusal(replace(as_stored(GOOD), subkey=b"")) == "no subkey"
    assert refusal(replace(as_stored(GOOD), subkey=msgpack.packb(b""))) == "no subkey"
    assert refusal(replace(as_stored(GOOD), subkey=msgpack.packb("text"))) == "no subkey"
    assert refusal(replace(as_stored(GOOD), subkey=msgpack.packb(b"x" * 200))) == "subkey"


def test_a_kind_that_is_not_registered_is_refused():
    body = encode(["anything"])
    envelope = Envelope(40, body, (OWNER.sign(40, body),)).to_bytes()
    key = dht_id(key_bytes(40, ()))
    assert refusal(DHTRecord(key, msgpack.packb(OWNER.peer_id_bytes), envelope, NOW + 60.0)) == "unknown kind"


def test_a_record_under_another_key_is_refused():
    other = dht_id(key_bytes(16, (MANIFEST, 1)))
    assert refusal(replace(as_stored(GOOD), key=other)) == "key"


def test_a_record_under_anothers_subkey_is_refused():
    victim = Identity.ephemeral()
    assert refusal(replace(as_stored(GOOD), subkey=msgpack.packb(victim.peer_id_bytes))) == "owner"


@pytest.mark.parametrize("by_s", [1, -1, 3600, -3600, 1e12, 0.5])
def test_an_expiry_that_is_not_the_signed_one_is_refused(by_s):
    record = as_stored(GOOD)
    assert refusal(replace(record, expiration_time=record.expiration_time + by_s)) == "expiry"


@pytest.mark.parametrize("expiry", [float("nan"), float("inf"), float("-inf")])
def test_an_expiry_that_is_no_time_is_refused(expiry):
    assert refusal(replace(as_stored(GOOD), expiration_time=expiry)) == "expiry"


@pytest.mark.parametrize("changes", [{"end": 5}, {"t": NOW + 1}, {"life_s": 61}, {"state": 0}, {"addresses": ("/x",)}])
def test_a_changed_field_breaks_the_signature(changes):
    assert refusal(forged(GOOD, **changes)) == "signature"


def test_a_record_in_anothers_name_is_refused():
    assert refusal(forged(GOOD, owner=Identity.ephemeral().peer_id)) == "signature"


def test_a_signature_for_another_kind_does_not_count():
    body = GOOD.record.to_body()
    crossed = Envelope(16, body, (OWNER.sign(17, body),)).to_bytes()
    assert refusal(as_stored(place(GOOD.record, crossed))) == "signature"


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_or_too_many_signatures_are_refused(count):
    body = GOOD.record.to_body()
    envelope = Envelope(16, body, (OWNER.sign(16, body),) * count).to_bytes()
    assert refusal(as_stored(place(GOOD.record, envelope))) == "signature"


def test_a_record_from_the_future_or_the_past_is_refused():
    assert refusal(as_stored(GOOD), now_s=NOW - 120) is None
    assert refusal(as_stored(GOOD), now_s=NOW - 121) == "from the future"
    assert refusal(as_stored(GOOD), now_s=NOW + 59.9) is None
    assert refusal(as_stored(GOOD), now_s=NOW + 60) == "expired"


def test_an_oversize_record_is_refused():
    assert refusal(replace(as_stored(GOOD), value=GOOD.envelope + bytes(5000))) == "oversize"


@given(st.binary(max_size=4))
def test_no_other_bytes_carry_the_same_record(tail):
    mangled = [GOOD.envelope + tail] if tail else []
    mangled += [GOOD.envelope[:1] + b"\xcc\x01" + GOOD.envelope[2:]]  # the version in two bytes
    for value in mangled:
        assert refusal(replace(as_stored(GOOD), value=value)) == "malformed"


@given(st.binary(max_size=40), st.binary(max_size=60), st.binary(max_size=300), st.floats())
def test_junk_is_refused_and_never_raises(key, subkey, value, expiry):
    assert refusal(DHTRecord(key, subkey, value, expiry)) is not None


def test_a_good_signature_is_checked_once_and_its_remembrance_does_not_help_a_forger():
    validator = RecordValidator(clock=lambda: NOW)
    assert validator.validate(as_stored(GOOD))
    started = time.perf_counter()
    for _ in range(100):
        assert validator.validate(as_stored(GOOD))
    assert len(validator._verified) == 1
    assert (time.perf_counter() - started) / 100 < 1e-3
    assert not validator.validate(forged(GOOD, end=5))
    validator._clock = lambda: NOW + 61
    assert not validator.validate(as_stored(GOOD))


def test_hivemind_can_compose_it():
    composite = CompositeValidator([RecordValidator(clock=lambda: NOW), RecordValidator(clock=lambda: NOW)])
    assert len(composite._validators) == 1
    assert composite.validate(as_stored(GOOD))
    assert composite.sign_value(as_stored(GOOD)) == GOOD.envelope == composite.strip_value(as_stored(GOOD))
