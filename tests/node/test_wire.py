"""The frames of a session: what goes in comes out, and nothing that is not a frame gets past."""

import struct
import tracemalloc
from dataclasses import MISSING, fields

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dht.identity import peer_id_to_str
from node.errors import FrameError
from node.wire import (
    CODECS,
    IDS,
    INT8_BLOCK,
    LENGTH_BYTES,
    LOGITS,
    MAX_BATCH,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_LENGTH,
    MAX_SEED,
    MAX_STEP_POSITIONS,
    MAX_STEP_TOKENS,
    MAX_TOP,
    Accept,
    Adopt,
    Alive,
    Checkpoint,
    Close,
    Cosign,
    Drain,
    Open,
    Opening,
    Probe,
    Refuse,
    Replay,
    Result,
    Reveal,
    StageLost,
    Step,
    Voucher,
    decode,
    decode_length,
    encode,
    max_step_tokens,
    payload_bytes,
    pushed_session,
)

FRAME_TYPES = (
    *(Open, Accept, Step, Result, Refuse, StageLost, Replay, Adopt, Probe, Alive, Drain, Close),
    *(Voucher, Checkpoint, Cosign, Reveal, Opening),
)

sessions = st.binary(min_size=16, max_size=16)
positions = st.integers(0, MAX_LENGTH)
counts = st.integers(0, 2**32)


def peer_of(key):
    return peer_id_to_str(bytes.fromhex("002408011220") + key)


PEER = peer_of(bytes(range(32)))
peers = st.just("") | st.binary(min_size=32, max_size=32).map(peer_of)
codecs = st.sampled_from(CODECS)
segments = st.integers(0, 2**32 - 1)
signatures = st.just(b"") | st.binary(min_size=64, max_size=64)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8))


def with_payload(frame_type, more_codecs, **extra):
    def build(shape, codec, seed, session, position, others):
        size = payload_bytes(codec, shape)
        payload = (seed * size)[:size]
        return frame_type(session=session, position=position, shape=shape, codec=codec, payload=payload, **others)

    return st.builds(
        build,
        shapes,
        st.sampled_from((*CODECS, *more_codecs)),
        st.binary(min_size=1, max_size=16),
        sessions,
        positions,
        st.fixed_dictionaries(extra),
    )


frames_of = {
    Open: st.builds(
        Open,
        session=sessions,
        manifest=st.binary(min_size=32, max_size=32),
        start=st.integers(0, 2**16),
        end=st.integers(0, 2**16),
        batch=st.integers(0, MAX_BATCH),
        left_padding=st.lists(positions, max_size=8).map(tuple),
        max_length=positions,
        codec=codecs,
        previous=peers,
        next=peers,
        next_addresses=st.lists(st.text(max_size=256), max_size=16).map(tuple),
        adapter=st.text(max_size=128),
        embed=st.booleans(),
        top=st.integers(0, MAX_TOP),
        sampling=st.none()
        | st.tuples(st.floats(0, 1000), st.integers(0, MAX_LENGTH), st.floats(0, 1), st.integers(0, MAX_SEED)),
        steps=counts,
        offer=st.binary(max_size=256),
        offer_signature=signatures,
        segment=segments,
        sent=counts,
    ),
    Accept: st.builds(Accept, session=sessions, dtype=st.text(max_size=32), agreement=signatures),
    Step: with_payload(
        Step,
        (IDS,),
        logits_to_keep=st.integers(0, MAX_STEP_TOKENS),
        crop=st.none() | positions,
        rows=st.none() | st.lists(st.integers(0, MAX_BATCH - 1), max_size=8).map(tuple),
        replay=st.integers(0, 2**16),
        number=counts,
        segment=segments,
    ),
    Result: with_payload(Result, (IDS, LOGITS)),
    Refuse: st.builds(
        Refuse,
        session=sessions,
        code=st.text(max_size=32),
        message=st.text(max_size=512),
        retryable=st.booleans(),
        retry_after_ms=st.integers(0, 2**31),
    ),
    StageLost: st.builds(StageLost, session=sessions, peer=peers),
    Replay: st.builds(
        Replay,
        session=sessions,
        tag=counts,
        next=peers,
        next_addresses=st.lists(st.text(max_size=256), max_size=16).map(tuple),
        answered=counts,
        stages=st.integers(0, 2**16),
        segment=segments,
    ),
    Adopt: st.builds(Adopt, session=sessions, tag=counts, previous=peers, segment=segments, sent=counts),
    Probe: st.builds(Probe, session=sessions, tag=counts),
    Alive: st.builds(Alive, session=sessions, tag=counts, taken=counts, handed_on=counts),
    Drain: st.builds(Drain, session=sessions, seconds=st.integers(0, 2**20)),
    Close: st.builds(Close, session=sessions),
    Voucher: st.builds(
        Voucher,
        session=sessions,
        segment=segments,
        index=segments,
        signature=st.binary(min_size=64, max_size=64),
    ),
    Checkpoint: st.builds(Checkpoint, session=sessions, body=st.binary(max_size=2000)),
    Cosign: st.builds(Cosign, session=sessions, body=st.binary(max_size=1024)),
    Reveal: st.builds(Reveal, session=sessions, first=positions, end=positions),
    Opening: with_payload(Opening, ()),
}
frames = st.one_of(*frames_of.values())

STEP = Step(bytes(range(16)), 3, (1, 2, 4), "float32", bytes(32), crop=3, rows=(0,))
OPEN = Open(bytes(16), bytes(32), 0, 4, 1, (), 64, "float32", "", "", ())


def body_of(frame):
    head, payload = encode(frame)
    return head[LENGTH_BYTES:] + bytes(payload)


def header_of(frame):
    return msgpack.unpackb(encode(frame)[0][LENGTH_BYTES:])


def changed(frame, **fields_given):
    """The frame's bytes with other header fields; a field given as ``...`` is left out."""
    header = {name: value for name, value in {**header_of(frame), **fields_given}.items() if value is not ...}
    return msgpack.packb(header) + bytes(getattr(frame, "payload", b""))


@pytest.mark.parametrize("frame_type", FRAME_TYPES)
@given(data=st.data())
def test_a_frame_comes_back_as_it_was_sent(frame_type, data):
    frame = data.draw(frames_of[frame_type])
    head, payload = encode(frame)
    body = head[LENGTH_BYTES:] + bytes(payload)
    assert decode_length(head[:LENGTH_BYTES]) == len(body)
    assert decode(body) == frame


def test_the_longest_lists_that_the_fields_allow_fit_into_a_header():
    opened = Open(
        session=bytes(16),
        manifest=bytes(32),
        start=2**16,
        end=2**16,
        batch=MAX_BATCH,
        left_padding=(MAX_LENGTH,) * MAX_BATCH,
        max_length=MAX_LENGTH,
        codec="bfloat16",
        previous=PEER,
        next=PEER,
        next_addresses=("ä" * 256,) * 16,
        adapter="ä" * 128,
    )
    assert decode(body_of(opened)) == opened
    step = Step(
        bytes(16), MAX_LENGTH, (MAX_BATCH, 1, 1), "float16", bytes(2048), MAX_LENGTH, (MAX_BATCH - 1,) * MAX_BATCH
    )
    assert decode(body_of(step)) == step


@pytest.mark.parametrize("field", ["previous", "next"])
@pytest.mark.parametrize("peer", ["0OIl", "éé", "nobody", PEER[:-1], PEER + "1", " " + PEER, "\0"])
def test_a_peer_that_is_no_peer_id_is_refused(field, peer):
    with pytest.raises(FrameError, match=f"The field {field} of a open frame must be empty or a peer id"):
        decode(changed(OPEN, **{field: peer}))


@given(frames)
def test_the_session_of_what_is_pushed_is_read_from_its_first_bytes_and_of_no_other_frame(frame):
    head = encode(frame)[0][LENGTH_BYTES:]
    assert pushed_session(head) == (frame.session if isinstance(frame, Step | Voucher) else None)


@given(st.binary(max_size=300))
def test_the_first_bytes_of_no_frame_are_refused_and_nothing_else(head):
    try:
        assert pushed_session(head) is None
    except FrameError:
        return


@given(st.integers(1, MAX_BATCH))
def test_a_step_of_any_number_of_rows_may_carry_tokens_within_both_bounds(rows):
    tokens = max_step_tokens(rows)
    assert 1 <= tokens <= MAX_STEP_TOKENS
    assert rows * tokens <= MAX_STEP_POSITIONS


@pytest.mark.parametrize("frame", [STEP, OPEN, Close(bytes(16))])
def test_optional_fields_left_at_their_default_do_not_travel(frame):
    header = header_of(frame)
    for part in fields(frame):
        if part.default is not MISSING and getattr(frame, part.name) == part.default:
            assert part.name not in header


def test_the_payload_is_neither_copied_when_sent_nor_when_received():
    payload = bytearray(range(32))
    sent = encode(Result(bytes(16), 0, (1, 2, 4), "float32", payload))[1]
    assert sent is payload
    body = bytearray(encode(Result(bytes(16), 0, (1, 2, 4), "float32", payload))[0][LENGTH_BYTES:] + payload)
    received = decode(body)
    body[-1] = 99
    assert received.payload[-1] == 99


@pytest.mark.parametrize(
    ("codec", "hidden_size", "num_bytes"),
    [
        ("float32", 64, 256),
        ("float16", 64, 128),
        ("bfloat16", 64, 128),
        ("int8", 1, 1 + 2),
        ("int8", INT8_BLOCK, 64 + 2),
        ("int8", INT8_BLOCK + 1, 65 + 2 * 2),
        ("int8", 4096, 4096 + 64 * 2),
    ],
)
def test_a_position_takes_as_many_bytes_as_its_codec_asks_for(codec, hidden_size, num_bytes):
    assert payload_bytes(codec, (1, 1, hidden_size)) == num_bytes
    assert payload_bytes(codec, (3, 5, hidden_size)) == 15 * num_bytes
    for size in (num_bytes - 1, num_bytes + 1):
        with pytest.raises(FrameError, match="payload bytes"):
            decode(body_of(Result(bytes(16), 0, (1, 1, hidden_size), codec, bytes(size))))


def test_an_open_with_a_codec_of_another_version_is_read_so_that_it_can_be_refused_politely():
    opened = decode(changed(OPEN, codec="int4"))
    assert isinstance(opened, Open)
    assert opened.codec not in CODECS


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_of_nothing_or_beyond_the_bound_is_refused(length):
    with pytest.raises(FrameError, match="announced"):
        decode_length(struct.pack(">I", length))


@given(st.binary(min_size=LENGTH_BYTES, max_size=LENGTH_BYTES))
def test_a_length_is_within_its_bounds_or_refused(prefix):
    try:
        length = decode_length(prefix)
    except FrameError:
        return
    assert 0 < length <= MAX_FRAME_BYTES


@pytest.mark.parametrize("frame_type", [Step, Result])
@given(change=st.integers(-32, 64).filter(bool))
def test_a_payload_of_another_size_than_shape_and_dtype_say_is_refused(frame_type, change):
    frame = frame_type(bytes(16), 0, (1, 2, 4), "float32", bytes(32 + change))
    with pytest.raises(FrameError, match="payload bytes"):
        decode(body_of(frame))


def test_a_shape_whose_size_no_machine_has_is_refused_by_arithmetic_alone():
    body = changed(STEP, shape=[MAX_LENGTH, MAX_LENGTH, MAX_LENGTH])
    tracemalloc.start()
    with pytest.raises(FrameError, match="payload bytes"):
        decode(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("frame_type", [t for t in FRAME_TYPES if t not in (Step, Result, Opening)])
def test_a_payload_on_a_frame_that_carries_none_is_refused(frame_type):
    example_of = {
        Open: OPEN,
        Accept: Accept(bytes(16), "float32"),
        Refuse: Refuse(bytes(16), "full", "No."),
        StageLost: StageLost(bytes(16), PEER),
        Replay: Replay(bytes(16), 1, PEER, (), 0, 1),
        Adopt: Adopt(bytes(16), 1, PEER),
        Probe: Probe(bytes(16), 1),
        Alive: Alive(bytes(16), 1, 2, 2),
        Drain: Drain(bytes(16), 3),
        Close: Close(bytes(16)),
        Voucher: Voucher(bytes(16), 1, 2, bytes(64)),
        Checkpoint: Checkpoint(bytes(16), b"body"),
        Cosign: Cosign(bytes(16), b"body"),
        Reveal: Reveal(bytes(16), 0, 64),
    }[frame_type]
    assert decode(body_of(example_of)) == example_of
    with pytest.raises(FrameError, match="may carry none"):
        decode(body_of(example_of) + b"\0")


@pytest.mark.parametrize("frame_type", FRAME_TYPES)
def test_every_field_without_a_default_is_asked_for(frame_type):
    required = [part.name for part in fields(frame_type) if part.default is MISSING and part.name != "payload"]
    values = {
        "session": bytes(16), "manifest": bytes(32), "start": 0, "end": 1, "batch": 1, "left_padding": [],
        "max_length": 8, "codec": "float32", "previous": "", "next": "", "next_addresses": [], "dtype": "float32",
        "position": 0, "shape": [1, 1, 1], "code": "full", "message": "No.", "peer": "", "seconds": 1,
        "tag": 1, "answered": 0, "stages": 1, "taken": 0, "handed_on": 0, "segment": 1, "index": 0,
        "signature": bytes(64), "body": b"", "first": 0,
    }  # fmt: skip
    payload = bytes(4) if frame_type in (Step, Result, Opening) else b""
    whole = {"kind": frame_type.KIND} | {name: values[name] for name in required}
    assert isinstance(decode(msgpack.packb(whole) + payload), frame_type)
    for name in required:
        lacking = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(FrameError, match=f"lacks the field {name}"):
            decode(msgpack.packb(lacking) + payload)


@given(frames, st.text(max_size=12), st.integers())
def test_an_unknown_field_is_refused(frame, name, value):
    header = header_of(frame)
    known = {part.name for part in fields(frame)} - {"payload"} | {"kind"}
    if name in known or not -(2**63) <= value < 2**64:
        return
    header[name] = value
    with pytest.raises(FrameError, match="unknown fields"):
        decode(msgpack.packb(header) + bytes(getattr(frame, "payload", b"")))


def test_the_payload_cannot_be_smuggled_in_as_a_header_field():
    with pytest.raises(FrameError, match="unknown fields"):
        decode(changed(STEP, payload=bytes(32)))


@pytest.mark.parametrize(
    ("frame", "field", "value"),
    [
        (STEP, "position", -1),
        (STEP, "position", MAX_LENGTH + 1),
        (STEP, "position", 2**63),
        (STEP, "position", float("nan")),
        (STEP, "position", 3.0),
        (STEP, "position", True),
        (STEP, "position", None),
        (STEP, "position", "3"),
        (STEP, "position", [3]),
        (STEP, "crop", -1),
        (STEP, "crop", False),
        (STEP, "crop", float("inf")),
        (STEP, "rows", [-1]),
        (STEP, "rows", [MAX_BATCH]),
        (STEP, "rows", [True]),
        (STEP, "rows", "00"),
        (STEP, "shape", [1, 2]),
        (STEP, "shape", [1, 2, 4, 1]),
        (STEP, "shape", [0, 2, 4]),
        (STEP, "shape", [1, -2, -4]),
        (STEP, "shape", [1.0, 2, 4]),
        (STEP, "shape", [True, 2, 4]),
        (STEP, "shape", 8),
        (STEP, "codec", "float64"),
        (STEP, "codec", "int4"),
        (STEP, "codec", ""),
        (STEP, "codec", 4),
        (STEP, "codec", ["float32"]),
        (STEP, "codec", {"float32": 1}),
        (STEP, "session", bytes(15)),
        (STEP, "session", bytes(17)),
        (STEP, "session", "0123456789abcdef"),
        (OPEN, "batch", -1),
        (OPEN, "batch", MAX_BATCH + 1),
        (OPEN, "batch", float("nan")),
        (OPEN, "batch", True),
        (OPEN, "left_padding", [-1]),
        (OPEN, "left_padding", [float("nan")]),
        (OPEN, "left_padding", {"0": 1}),
        (OPEN, "max_length", MAX_LENGTH + 1),
        (OPEN, "manifest", bytes(31)),
        (OPEN, "previous", "p" * 65),
        (OPEN, "previous", b"peer"),
        (OPEN, "next_addresses", ["a" * 257]),
        (OPEN, "next_addresses", ["a"] * 17),
        (OPEN, "next_addresses", [b"a"]),
        (OPEN, "codec", "c" * 17),
        (OPEN, "codec", 8),
        (OPEN, "adapter", None),
        (OPEN, "embed", 1),
        (OPEN, "top", -1),
        (OPEN, "top", MAX_TOP + 1),
        (OPEN, "top", 3.0),
        (OPEN, "sampling", [1.0, 0, 1.0]),
        (OPEN, "sampling", [1.0, 0, 1.0, 0, 0]),
        (OPEN, "sampling", [float("nan"), 0, 1.0, 0]),
        (OPEN, "sampling", [float("inf"), 0, 1.0, 0]),
        (OPEN, "sampling", [-1.0, 0, 1.0, 0]),
        (OPEN, "sampling", [1, 0, 1.0, 0]),
        (OPEN, "sampling", [1.0, -1, 1.0, 0]),
        (OPEN, "sampling", [1.0, 0, 1.1, 0]),
        (OPEN, "sampling", [1.0, 0, float("nan"), 0]),
        (OPEN, "sampling", [1.0, 0, 1.0, -1]),
        (OPEN, "sampling", {"temperature": 1.0}),
        (STEP, "logits_to_keep", -1),
        (STEP, "logits_to_keep", MAX_STEP_TOKENS + 1),
        (STEP, "logits_to_keep", True),
        (STEP, "codec", LOGITS),
        (Refuse(bytes(16), "full", "No."), "retryable", 1),
        (Refuse(bytes(16), "full", "No."), "retry_after_ms", -1),
        (Refuse(bytes(16), "full", "No."), "message", "m" * 513),
        (Drain(bytes(16), 3), "seconds", True),
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused_by_its_field(frame, field, value):
    assert decode(changed(frame)) == frame
    with pytest.raises(FrameError, match=f"The field {field} of a {frame.KIND} frame"):
        decode(changed(frame, **{field: value}))


@pytest.mark.parametrize("field", ["rows", "left_padding"])
def test_a_list_of_more_entries_than_a_session_may_have_rows_is_refused(field):
    frame = STEP if field == "rows" else OPEN
    assert decode(changed(frame, **{field: [0] * MAX_BATCH}))
    with pytest.raises(FrameError):
        decode(changed(frame, **{field: [0] * (MAX_BATCH + 1)}))


@pytest.mark.parametrize("kind", ["", "opened", "OPEN", "reserved", None, 3, b"open", ["open"], {"open": 1}, ...])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(FrameError, match="unknown kind"):
        decode(changed(OPEN, kind=kind))


@pytest.mark.parametrize("header", [None, 1, 1.5, True, "open", b"open", [], ["kind", "open"], msgpack.Timestamp(1, 1)])
def test_a_header_that_is_not_a_map_is_refused(header):
    with pytest.raises(FrameError):
        decode(msgpack.packb(header))


@pytest.mark.parametrize("key", [1, None, 1.5, (1, 2), True])
def test_a_header_whose_keys_are_not_strings_is_refused(key):
    with pytest.raises(FrameError):
        decode(msgpack.packb({"kind": "close", "session": bytes(16), key: 1}))


def test_a_key_of_bytes_is_not_the_field_of_that_name():
    with pytest.raises(FrameError, match="lacks the field session"):
        decode(msgpack.packb({"kind": "close", b"session": bytes(16)}))


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
@pytest.mark.parametrize("depth", [64, 600, 20_000])
def test_nesting_without_end_is_refused(opener, depth):
    nested = b"\x81\xa4kind" + opener * depth + b"\xc0"
    with pytest.raises(FrameError):
        decode(nested)


@pytest.mark.parametrize(
    "header",
    [
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1 entries
        b"\x81\xa4kind\xdd\xff\xff\xff\xff",  # a list of 2^32 - 1 entries
        b"\x81\xa4kind\xdb\xff\xff\xff\xff",  # a string of 4 GiB
        b"\x81\xa4kind\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
        b"\x81\xa4kind\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GiB
    ],
)
def test_a_size_announced_inside_the_header_allocates_nothing(header):
    tracemalloc.start()
    with pytest.raises(FrameError):
        decode(header + bytes(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_header_over_its_bound_is_refused_whatever_the_frame_may_hold():
    fitting = msgpack.packb({"kind": "close", "session": bytes(16), "filler": bytes(MAX_HEADER_BYTES - 64)})
    assert len(fitting) <= MAX_HEADER_BYTES
    with pytest.raises(FrameError, match="has 1 unknown fields"):
        decode(fitting)
    with pytest.raises(FrameError, match="within its bounds"):
        decode(msgpack.packb({"kind": "close", "session": bytes(16), "filler": bytes(MAX_HEADER_BYTES)}))


def test_of_a_large_frame_only_the_header_is_copied():
    size = 32 * 2**20
    body = bytearray(body_of(Step(bytes(16), 0, (1, size // 4, 1), "float32", bytes(size))))
    tracemalloc.start()
    frame = decode(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frame.payload.nbytes == size
    assert peak < 2**20


@given(frames, st.data())
def test_a_frame_cut_short_is_refused(frame, data):
    body = body_of(frame)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(FrameError):
        decode(body[:cut])


@given(frames, st.data())
def test_a_frame_with_one_byte_changed_is_decoded_or_refused_and_nothing_else(frame, data):
    body = bytearray(body_of(frame))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(body))
    except FrameError:
        return
    assert isinstance(decoded, FRAME_TYPES)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
@example(b"\x80")
def test_random_bytes_are_refused_and_nothing_else(body):
    with pytest.raises(FrameError):
        decode(body)


odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=6,
)
field_names = sorted({part.name for frame_type in FRAME_TYPES for part in fields(frame_type)})


@given(
    st.sampled_from([frame_type.KIND for frame_type in FRAME_TYPES]),
    st.dictionaries(st.sampled_from(field_names), odd_values, max_size=12),
    st.binary(max_size=16),
)
def test_any_map_with_our_own_field_names_is_decoded_or_refused_and_nothing_else(kind, header, payload):
    body = msgpack.packb({"kind": kind, **header}) + payload
    try:
        frame = decode(body)
    except FrameError:
        return
    assert decode(body_of(frame)) == frame
