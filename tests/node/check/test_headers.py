"""Headers are read as they were written, and only those of chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.check.headers import Header, Piece
from node.errors import FalseEvidence
from node.wire import CODECS

pieces = st.builds(
    lambda first, rows, crop, keeps, history: Piece(
        64 + first, rows, 1, 0, crop, tuple(range(rows)) if keeps else None, history
    ),
    st.integers(0, 63), st.integers(1, 5), st.none() | st.integers(0, 2**32 - 1), st.booleans(), st.booleans(),
)  # fmt: skip


@given(st.sampled_from(list(CODECS)), st.lists(pieces, min_size=1, max_size=64).map(tuple))
def test_a_header_is_read_as_it_was_written(codec, made):
    header = Header(codec, made)
    assert Header.from_bytes(header.to_bytes()) == header


@pytest.mark.parametrize(
    "header",
    [
        Header("float32", ()),
        Header("ids", (Piece(0, 1, 1, 0),)),
        Header("float32", (Piece(0, 1, 65, 0),)),
        Header("float32", (Piece(63, 1, 2, 0),)),
        Header("float32", (Piece(0, 1, 1, 0), Piece(64, 1, 1, 0))),
        Header("float32", (Piece(0, 0, 1, 0),)),
        Header("float32", (Piece(0, 1, 0, 0),)),
        Header("float32", (Piece(0, 1, 1, 2),)),
        Header("float32", (Piece(0, 1, 1, 0),) * 65),
    ],
)
def test_what_is_no_chunk_has_no_header(header):
    with pytest.raises(FalseEvidence):
        Header.from_bytes(header.to_bytes())


@given(st.binary(max_size=80))
def test_junk_is_no_header_or_the_one_that_is_written_so(data):
    for codec in (b"", b"float32\0"):
        try:
            header = Header.from_bytes(codec + data)
        except FalseEvidence:
            continue
        assert header.to_bytes() == codec + data
