from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.codec import decode, encode
from dht.errors import BadRecord
from dht.identity import Identity, peer_id_to_bytes, verify
from dht.records import (
    EMBEDS,
    HEADS,
    MAX_BLOCKS,
    MAX_NEIGHBOURS,
    MAX_ROUND_TRIP_US,
    MODELS_KEY,
    Announcement,
    Envelope,
    Kind,
    ManifestRecord,
    ServerState,
    dht_id,
    key_bytes,
    seal,
)
from tests.dht.samples import MANIFEST, announcement

OWNER = Identity.ephemeral()
PEERS = [Identity.ephemeral().peer_id for _ in range(3)]
MODEL = ManifestRecord(MANIFEST, OWNER.peer_id, 1000, 60, "gpt2", "gpt2", 12, 768, 50257)

announcements = st.builds(
    Announcement,
    manifest=st.binary(min_size=32, max_size=32),
    shard=st.integers(0, 255),
    owner=st.just(OWNER.peer_id),
    t=st.integers(0, 2**40),
    life_s=st.integers(1, 3600),
    state=st.sampled_from(ServerState),
    start=st.integers(0, 10),
    end=st.integers(11, MAX_BLOCKS),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    throughput_milli=st.integers(0, 2**48),
    max_length=st.integers(0, 2**40),
    cache_free_tokens=st.integers(0, 2**40),
    addresses=st.lists(st.just("/ip4/1.2.3.4/tcp/5"), max_size=8).map(tuple),
    version=st.just("0.1.0"),
    ends=st.sampled_from([0, HEADS]),
    prefill_milli=st.integers(0, 2**48),
    queue_us=st.integers(0, MAX_ROUND_TRIP_US),
    neighbours=st.lists(st.sampled_from(PEERS), unique=True, max_size=MAX_NEIGHBOURS).flatmap(
        lambda peers: st.tuples(*(st.tuples(st.just(peer), st.integers(0, MAX_ROUND_TRIP_US)) for peer in peers))
    ),
)


@given(announcements)
def test_an_announcement_is_read_as_it_was_written(record):
    assert Announcement.from_body(record.to_body()) == record


def test_a_manifest_record_is_read_as_it_was_written():
    assert ManifestRecord.from_body(MODEL.to_body()) == MODEL


@given(announcements, st.integers(0, 17), st.sampled_from([2**64 - 1, -1, b"", b"x" * 64, "", "\n", True, [], [[]]]))
def test_a_field_of_another_type_or_range_is_refused_or_is_another_valid_record(record, position, junk):
    fields = decode(record.to_body(), 10_000)
    fields[position] = junk
    body = encode(fields)
    try:
        read = Announcement.from_body(body)
    except BadRecord:
        return
    assert read.to_body() == body


def test_a_neighbour_that_stands_twice_is_refused():
    record = replace(announcement(OWNER), neighbours=((PEERS[0], 1), (PEERS[0], 2)))
    with pytest.raises(BadRecord, match="twice"):
        Announcement.from_body(record.to_body())


@pytest.mark.parametrize(
    "change",
    [
        {"start": 4, "end": 4},
        {"start": 5, "end": 4},
        {"end": MAX_BLOCKS + 1},
        {"life_s": 0},
        {"life_s": 3601},
        {"shard": 256},
        {"manifest": b"short"},
        {"addresses": ("/ip4/1.2.3.4/tcp/5",) * 9},
        {"addresses": ("/" * 300,)},
        {"dtype": "x" * 33},
        {"t": 2**41},
        {"ends": 4},
        {"ends": EMBEDS, "start": 1},
        {"ends": EMBEDS | HEADS, "start": 2},
    ],
)
def test_an_announcement_out_of_bounds_is_neither_sealed_nor_read(change):
    record = replace(announcement(OWNER), **change)
    with pytest.raises(ValueError):
        seal(record, OWNER)
    with pytest.raises(BadRecord):
        Announcement.from_body(record.to_body())


@pytest.mark.parametrize(("start", "ends"), [(0, EMBEDS), (0, EMBEDS | HEADS), (1, HEADS)])
def test_the_ends_of_a_span_are_announced(start, ends):
    record = replace(announcement(OWNER, start=start), ends=ends)
    assert Announcement.from_body(record.to_body()).ends == ends


def test_an_unknown_field_at_the_end_is_refused():
    body = encode([*decode(announcement(OWNER).to_body(), 10_000), 1])
    with pytest.raises(BadRecord, match="unknown"):
        Announcement.from_body(body)


def test_a_record_is_sealed_by_its_author_alone():
    with pytest.raises(ValueError, match="authors"):
        seal(announcement(OWNER), Identity.ephemeral())
    with pytest.raises(ValueError, match="authors"):
        seal(announcement(OWNER))


def test_a_sealed_record_says_where_it_belongs():
    record = announcement(OWNER)
    signed = seal(record, OWNER)
    assert signed.key == encode(["efed1", 16, MANIFEST, 0])
    assert signed.subkey == OWNER.peer_id_bytes
    assert signed.expires_s == record.t + 60
    opened = Envelope.from_bytes(signed.envelope)
    assert Announcement.from_body(opened.body) == record
    assert verify(OWNER.peer_id_bytes, 16, opened.body, opened.signatures[0])


def test_all_manifest_records_stand_under_one_key_and_one_owner_may_have_several():
    signed = seal(MODEL, OWNER)
    assert signed.key == key_bytes(Kind.MANIFEST, MODELS_KEY)
    assert signed.subkey == peer_id_to_bytes(OWNER.peer_id) + MANIFEST


def test_the_dht_id_is_twenty_bytes():
    assert dht_id(b"abc").hex() == "a9993e364706816aba3e25717850c26c9cd0d89d"


@given(st.binary(max_size=200))
def test_junk_is_no_envelope(data):
    with pytest.raises(BadRecord):
        Envelope.from_bytes(data)
