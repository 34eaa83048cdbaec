"""What evidence says went in is what the stage's cache held when the claimed chunk came."""

from dataclasses import replace
from hashlib import sha256

import pytest

from node.check.check import check_sizes
from node.check.evidence import Evidence, OpenedChunk
from node.check.headers import Header, Piece
from node.claims.rerun import work_of
from node.commitment.chunks import Leaf
from node.errors import CannotCheck
from tests.node.check.session import WIDTH, held, inputs, outputs

CODEC = "float32"


def chunk_of(index, pieces, taken):
    header = Header(CODEC, tuple(pieces)).to_bytes()
    first = pieces[0].first
    return OpenedChunk(Leaf(0, index, first, sha256(header).digest(), sha256(taken).digest(), bytes(32)), header, taken)


def evidence_of(*chunks, given, left_padding=()):
    return Evidence(b"", b"", b"", "float32", "", left_padding, chunks, given)


def joined(pieces):
    return b"".join(bytes(piece.payload) for piece in pieces)


def test_a_session_that_only_grew_is_run_as_it_was():
    work = work_of(held().evidence, WIDTH)
    check_sizes(work)
    assert (work.first, work.end) == (128, 192)
    assert joined(work.inputs) == inputs(0, 192)
    assert joined(work.outputs) == outputs(128, 64)


def test_rows_and_their_padding_are_those_of_the_session():
    steps = [outputs(16 * number, 8) for number in range(4)]
    taken = [inputs(0, 64), inputs(100, 64)]
    evidence = evidence_of(
        chunk_of(0, [Piece(0, 2, 32, 1)], taken[0]),
        chunk_of(1, [Piece(32, 2, 20, 1), Piece(52, 2, 12, 1)], taken[1]),
        given=b"".join(steps) + outputs(200, 32),
        left_padding=(0, 3),
    )
    work = work_of(evidence, WIDTH)
    check_sizes(work)
    assert (work.rows, work.first, work.end, work.left_padding) == (2, 32, 64, (0, 3))
    assert [piece.num_positions for piece in work.inputs] == [32, 20, 12]
    assert joined(work.inputs) == b"".join(taken)


def test_a_crop_keeps_the_beginning_of_every_row():
    evidence = evidence_of(
        chunk_of(0, [Piece(0, 2, 4, 1)], inputs(0, 8)),
        chunk_of(1, [Piece(2, 2, 2, 1, crop=2)], inputs(50, 4)),
        given=outputs(50, 4),
    )
    work = work_of(evidence, WIDTH)
    check_sizes(work)
    assert joined(work.inputs) == inputs(0, 2) + inputs(4, 2) + inputs(50, 4)


def test_what_was_cropped_is_forgotten():
    work = work_of(
        evidence_of(
            chunk_of(0, [Piece(0, 1, 64, 1)], inputs(0, 64)),
            chunk_of(1, [Piece(64, 1, 36, 1)], inputs(1000, 36)),
            chunk_of(2, [Piece(70, 1, 58, 1, crop=70)], inputs(2000, 58)),
            given=outputs(70, 58),
        ),
        WIDTH,
    )
    check_sizes(work)
    assert (work.first, work.end) == (70, 128)
    assert joined(work.inputs) == inputs(0, 64) + inputs(1000, 6) + inputs(2000, 58)


@pytest.mark.parametrize(
    ("pieces", "taken", "why"),
    [
        ([Piece(0, 2, 2, 1), Piece(2, 1, 4, 1)], inputs(0, 8), "Rows were selected"),
        ([Piece(0, 1, 8, 1, rows=(0,))], inputs(0, 8), "Rows were selected"),
        ([Piece(0, 1, 4, 1), Piece(2, 1, 4, 1, crop=2)], inputs(0, 8), "within a chunk"),
        ([Piece(8, 1, 8, 1)], inputs(0, 8), "gap"),
        ([Piece(0, 1, 4, 1)], inputs(0, 8), "no hidden states"),
    ],
)
def test_nobody_can_tell_what_evidence_does_not_say(pieces, taken, why):
    with pytest.raises(CannotCheck, match=why):
        work_of(evidence_of(chunk_of(0, pieces, taken), given=outputs(0, 8)), WIDTH)


def test_outputs_of_other_sizes_are_none():
    evidence = held().evidence
    with pytest.raises(CannotCheck, match="no hidden states"):
        work_of(replace(evidence, given=evidence.given[:-4]), WIDTH)
