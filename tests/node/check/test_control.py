"""On text an honest server of each declared kind passes, so who does not is to blame; on made-up inputs none does."""

from dataclasses import replace

import pytest

from node.check.check import Piece, Verdict, Work, check_span, through_codec
from node.check.control import control_of
from node.errors import CannotCheck
from node.model.tensors import to_payload
from tests.node.check.embedded import Embedded

BLOCKS = (4, 6)


@pytest.fixture(scope="module")
def embedded():
    return Embedded(num_texts=1, positions=128)


def work_of(embedded, codec, factor=1):
    entering = through_codec(factor * embedded.entering[BLOCKS[0]], codec)
    pieces = [Piece(to_payload(part, codec), part.shape[1]) for part in (entering, entering[:, 64:])]
    return Work(1, embedded.calibration.hidden_size, codec, (pieces[0],), (pieces[1],))


@pytest.mark.parametrize("codec", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("held_in", ["float32", "float16", "bfloat16"])
def test_an_honest_server_passes_on_text(embedded, held_in, codec):
    control = control_of(embedded.checkpoint, held_in, *BLOCKS, work_of(embedded, codec), max_bytes=2**28)
    span = embedded.reference(held_in, BLOCKS)
    span = span.view(*BLOCKS) if span.start != BLOCKS[0] else span
    assert check_span(span, control, embedded.calibration, held_in).verdict is Verdict.PASS


def test_none_passes_where_inputs_drown_what_is_added(embedded):
    work = work_of(embedded, "bfloat16", 1000)
    control = control_of(embedded.checkpoint, "bfloat16", *BLOCKS, work, max_bytes=2**28)
    span = embedded.reference("bfloat16", BLOCKS).view(*BLOCKS)
    assert check_span(span, control, embedded.calibration, "bfloat16").verdict is Verdict.FAIL


def test_it_takes_no_more_memory_than_allowed_and_pads_as_the_server_does(embedded):
    work = work_of(embedded, "float32")
    with pytest.raises(CannotCheck, match="memory"):
        control_of(embedded.checkpoint, "float32", *BLOCKS, work, max_bytes=1000)
    padded = replace(work, left_padding=(70,))
    given = [
        control_of(embedded.checkpoint, "float32", *BLOCKS, each, max_bytes=2**28).outputs for each in (work, padded)
    ]
    assert given[0] != given[1]
    span = embedded.reference("float32", BLOCKS).view(*BLOCKS)
    held_against = replace(padded, outputs=given[1])
    assert check_span(span, held_against, embedded.calibration, "float32").verdict is Verdict.PASS
