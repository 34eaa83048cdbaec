"""A record says of a file what a whole chunk is held against, and always fits."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.calibration import MAX_THRESHOLDS, Calibration
from dht.identity import Identity
from dht.records import seal
from dht.rules import DEFAULT_RULES
from node.calibrations.rows import rows_of
from node.check.calibration import SIZES
from node.check.calibration_file import SHIPPED, read_calibration
from tests.node.check.figures import calibration, honest, tail

SIGNER = Identity.ephemeral()
KINDS = [
    (held_in, codec)
    for held_in in ("float32", "float16", "bfloat16", "int8", "int4")
    for codec in ("float32", "float16", "bfloat16", "int8")
]


def stands(rows):
    """The record passes every check that members make."""
    record = Calibration(bytes(32), SIGNER.peer_id, 1, 1, bytes(32), 1, rows, DEFAULT_RULES.epoch_s)
    sealed = seal(record, SIGNER)
    assert len(sealed.envelope) <= Calibration.MAX_BYTES
    assert Calibration.from_body(record.to_body()) == record


def test_a_row_is_what_the_worst_span_of_its_length_is_held_against():
    made = calibration(kinds=[("bfloat16", "float32")])
    means = tuple((start, end, 0.02 if start == 1 else mean) for start, end, mean in made.honest[0].means)
    made = replace(made, honest=(replace(made.honest[0], means=means),))
    rows = rows_of(made)
    assert [row.num_blocks for row in rows] == [1, 2, 4]
    median, upper, largest = made.standard("bfloat16", "float32", 1, 2).limits(SIZES[-1])
    expected = [round(1e6 * limit) for limit in (median.passes, median.fails, upper.fails, largest.fails)]
    assert list(rows[0][3:8]) == [*expected, 20_000]
    assert rows[1].mean_ppm == 10_000
    assert rows[0].pooled_ratio_milli == round(1000 * 1.05 * 1.25)
    stands(rows)


def test_the_shipped_one_fits():
    stands(rows_of(read_calibration(SHIPPED)))


def test_where_there_is_no_room_for_all_the_longest_spans_keep_their_rows():
    made = calibration(kinds=KINDS)
    assert sum(len(each.tails) for each in made.honest) > MAX_THRESHOLDS
    rows = rows_of(made)
    assert len(rows) <= MAX_THRESHOLDS
    assert {(row.weights, row.codec) for row in rows if row.num_blocks == 4} == {*KINDS}
    stands(rows)


@given(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.floats(1e-300, 1e300), st.floats(1e-9, 1e300))
def test_whatever_numbers_a_file_may_hold_they_make_a_record(median, high, largest, mean):
    odd = tail(largest=largest, high=high)
    odd = replace(odd, median=(median,) * 4)
    one = replace(honest(mean=mean, num_blocks=1), means=((0, 1, mean),), tails=((1, odd),), pooled=mean)
    stands(rows_of(replace(calibration(num_blocks=1), honest=(one,))))
