import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.codec import INT64_MIN, MAX_DEPTH, MAX_ITEMS, MAX_VALUES, UINT64_MAX, Fields, decode, encode
from dht.errors import BadRecord

scalars = st.one_of(st.booleans(), st.integers(INT64_MIN, UINT64_MAX), st.binary(max_size=40), st.text(max_size=40))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5), max_leaves=20).filter(
    lambda value: depth(value) <= MAX_DEPTH
)


def depth(value: object) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(values)
def test_what_is_encoded_decodes_to_itself(value):
    assert decode(encode(value), 10_000) == value


@given(st.binary(max_size=64))
def test_bytes_either_decode_to_what_encodes_to_them_or_are_refused(data):
    try:
        value = decode(data, 64)
    except BadRecord:
        return
    assert encode(value) == data


@given(values, st.binary(min_size=1, max_size=3))
def test_a_trailing_byte_is_refused(value, tail):
    with pytest.raises(BadRecord):
        decode(encode(value) + tail, 10_000)


@given(values)
def test_a_missing_byte_is_refused(value):
    with pytest.raises(BadRecord):
        decode(encode(value)[:-1], 10_000)


@pytest.mark.parametrize("value", [1.5, None, {}, {"a": 1}, msgpack.ExtType(1, b"x"), msgpack.Timestamp(1, 0)])
def test_what_has_no_canonical_form_is_refused_both_ways(value):
    with pytest.raises(TypeError):
        encode([value])
    with pytest.raises(BadRecord):
        decode(msgpack.packb([value]), 100)


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x05",  # 5 in two bytes
        b"\xcd\x00\x80",  # 128 in three
        b"\xd9\x01a",  # one letter with a long header
        b"\xc5\x00\x01a",  # one byte with a long header
        b"\xdc\x00\x01\x01",  # an array of one with a long header
        b"\xd2\xff\xff\xff\xff",  # -1 in five bytes
        b"\xa1\xff",  # text that is no UTF-8
        b"\xc1",  # a byte that msgpack never uses
        b"",
    ],
)
def test_longer_forms_and_junk_are_refused(data):
    with pytest.raises(BadRecord):
        decode(data, 100)


def test_a_lying_length_is_refused_before_anything_is_allocated():
    for data in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffa",
        b"\xc6\x7f\xff\xff\xff",
        b"\xdd\x00\x00\x01\x01" * 900,
    ):
        with pytest.raises(BadRecord):
            decode(data, 10_000)


def test_deep_and_long_arrays_are_refused_both_ways():
    deep: list = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    for value in (deep, [0] * (MAX_ITEMS + 1)):
        with pytest.raises(ValueError):
            encode(value)
        with pytest.raises(BadRecord):
            decode(msgpack.packb(value), 10_000)
    with pytest.raises(BadRecord):
        decode(b"\x91" * 5000 + b"\x90", 10_000)


@pytest.mark.parametrize("value", [0, 2**40, -(2**40), "ab", "a" * 40, "a" * 300, b"", bytes(300), bytes(2**16)])
def test_many_small_values_are_refused_before_they_are_made(value, monkeypatch):
    monkeypatch.setattr("dht.codec.MAX_VALUES", 1 + MAX_VALUES // 64)  # Of values with 64 KiB each, 16 MiB.
    rows = MAX_VALUES // 64 // 16
    most = encode([[value] * 15] * rows)
    assert decode(most, len(most)) == [[value] * 15] * rows
    more = encode([*[[value] * 15] * rows, value])
    monkeypatch.setattr(msgpack, "unpackb", None)
    with pytest.raises(BadRecord, match="values"):
        decode(more, len(more))


def test_more_bytes_than_allowed_are_refused():
    assert decode(encode(b"x" * 10), 12) == b"x" * 10
    with pytest.raises(BadRecord):
        decode(encode(b"x" * 10), 11)


def test_fields_are_taken_in_order_with_their_bounds():
    fields = Fields([5, True, b"ab", "text", [1], ["a", "b"]])
    assert fields.uint("number", 5) == 5
    assert fields.flag("flag") is True
    assert fields.blob("blob", 2) == b"ab"
    assert fields.text("text", 4) == "text"
    assert fields.items("items", 1) == [1]
    assert fields.texts("texts", 2, 1) == ("a", "b")
    fields.end()


@pytest.mark.parametrize(
    ("value", "take"),
    [
        ([6], lambda fields: fields.uint("n", 5)),
        ([-1], lambda fields: fields.uint("n", 5)),
        ([True], lambda fields: fields.uint("n", 5)),
        ([1], lambda fields: fields.flag("n")),
        ([b"abc"], lambda fields: fields.blob("n", 2, 4)),
        (["ab"], lambda fields: fields.blob("n", 2)),
        (["\n"], lambda fields: fields.text("n", 5)),
        (["äöü"], lambda fields: fields.text("n", 5)),
        ([[1, 2]], lambda fields: fields.items("n", 1)),
        ([["a", 1]], lambda fields: fields.texts("n", 2, 1)),
        ([], lambda fields: fields.uint("n", 5)),
        ([1], lambda fields: fields.end()),
    ],
)
def test_a_field_out_of_its_bounds_is_refused(value, take):
    with pytest.raises(BadRecord):
        take(Fields(value))


def test_something_other_than_an_array_has_no_fields():
    with pytest.raises(BadRecord):
        Fields(b"bytes")
