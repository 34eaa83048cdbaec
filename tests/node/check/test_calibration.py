"""A calibration is one file of one form, gives each span its thresholds, and is refused in words where it is bad."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.check.calibration import (
    LEAST_FAIL,
    LEAST_PASS,
    MAX_BYTES,
    Calibration,
    decode_calibration,
    encode_calibration,
)
from node.check.statistics import summarise
from node.errors import BadCalibration, CannotCheck
from node.run.exit_codes import exit_code
from tests.node.check.figures import answers, calibration, honest, tail

FILE = encode_calibration(calibration())
NUMBERS = st.floats(1e-9, 1e9)


def test_a_calibration_comes_back_as_it_was_and_its_digest_names_it():
    back = decode_calibration(FILE, manifest=bytes(range(32)))
    assert back == calibration()
    assert back.digest == calibration().digest
    assert back.digest != calibration(mean=0.02).digest


@given(mean=NUMBERS, pooled=NUMBERS, largest=NUMBERS)
def test_any_figures_come_back_bit_for_bit(mean, pooled, largest):
    one = dataclasses.replace(honest(mean=mean), pooled=pooled, tails=((1, tail(largest=largest)), *honest().tails[1:]))
    written = dataclasses.replace(calibration(), honest=(one,))
    assert decode_calibration(encode_calibration(written)) == written


@given(place=st.integers(0, len(FILE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_gives_another_calibration_or_a_sentence(place, byte):
    changed = FILE[:place] + bytes([byte]) + FILE[place + 1 :]
    try:
        back = decode_calibration(changed)
    except BadCalibration:
        return
    assert encode_calibration(back) == changed


@given(data=st.binary(max_size=200))
def test_bytes_of_no_calibration_are_refused_in_a_sentence(data):
    with pytest.raises(BadCalibration, match="efedllm calibrate"):
        decode_calibration(data)


def edited(edit):
    content = json.loads(FILE)
    edit(content)
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(version=1), "version 2"),
        (lambda c: c.update(extra=1), "other fields"),
        (lambda c: c.pop("answers"), "other fields"),
        (lambda c: c.update(manifest="00"), "another size"),
        (lambda c: c.update(moments="AAAA"), "another size"),
        (lambda c: c.update(moments="!"), "not what"),
        (lambda c: c.update(num_blocks=0), "out of its bounds"),
        (lambda c: c.update(num_blocks=True), "out of its bounds"),
        (lambda c: c.update(honest=[]), "length"),
        (lambda c: c["honest"].append(c["honest"][0]), "twice"),
        (lambda c: c["honest"][0].update(held_in="nf4"), "none of"),
        (lambda c: c["honest"][0].update(pooled=0.0), "above 0"),
        (lambda c: c["honest"][0].update(pooled=1), "above 0"),
        (lambda c: c["honest"][0]["means"].pop(), "fit together"),
        (lambda c: c["honest"][0]["means"].append([3, 5, 0.1]), "out of its bounds"),
        (lambda c: c["honest"][0]["means"].append([2, 2, 0.1]), "none of this model"),
        (lambda c: c["honest"][0]["tails"].reverse(), "fit together"),
        (lambda c: c["answers"].append(c["answers"][0]), "twice"),
        (lambda c: c["answers"][0].update(means=c["honest"][0]["means"]), "end with the last block"),
        (lambda c: c["honest"][0]["tails"][0].__setitem__(1, 0), "out of its bounds"),
        (lambda c: c["made_from"].update(seed="x"), "seed"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named(edit, reason):
    data = edited(edit)
    with pytest.raises(BadCalibration, match=reason) as caught:
        decode_calibration(data)
    assert exit_code(caught.value) == 23


def test_a_calibration_in_another_form_is_refused():
    with pytest.raises(BadCalibration, match="canonical"):
        decode_calibration(FILE.replace(b":", b": ", 1))
    with pytest.raises(BadCalibration, match="canonical"):
        decode_calibration(FILE.replace(b'{"answers"', b'{"seed":1,"answers"', 1).replace(b'"seed":1,', b"", 1) + b"\n")


def test_a_calibration_of_another_model_or_of_any_length_is_refused():
    with pytest.raises(BadCalibration, match="of the model"):
        decode_calibration(FILE, manifest=bytes(32))
    with pytest.raises(BadCalibration, match="at most"):
        decode_calibration(b" " * (MAX_BYTES + 1))


def test_moments_that_are_no_numbers_are_refused():
    moments = torch.ones(4, 32)
    moments[1, 2] = float("nan")
    with pytest.raises(BadCalibration, match="moment"):
        decode_calibration(encode_calibration(calibration(moments=moments)))


def test_thresholds_are_multiples_of_the_percentiles_of_the_spans_own_mean():
    standard = calibration().standard("bfloat16", "float32", 1, 2)
    median, high, largest = standard.limits(64)
    assert (median.passes, median.fails) == pytest.approx((0.01 * 1.4 * 1.25, 0.01 * 1.4 * 2))
    assert (high.fails, largest.passes, largest.fails) == pytest.approx((0.04, 0.06, 0.12))
    assert standard.limits(63)[1] == largest
    assert standard.pooled_limit == pytest.approx(1.05 * 1.25)
    assert standard.ratio(summarise([0.02] * 64)) == pytest.approx(2)


def test_shorter_chunks_have_wider_thresholds_and_none_is_left_without():
    standard = calibration().standard("bfloat16", "float32", 0, 1)
    medians = [standard.limits(size)[0].fails for size in (1, 4, 5, 16, 17, 63, 64)]
    assert medians == sorted(medians, reverse=True)
    assert medians[0] == medians[1] > medians[2] == medians[3] > medians[4] == medians[5] > medians[6]


def test_no_threshold_is_below_what_machines_may_differ_by():
    standard = calibration(mean=1e-7).standard("bfloat16", "float32", 0, 1)
    assert all(limit.passes >= LEAST_PASS and limit.fails >= LEAST_FAIL for limit in standard.limits(64))


def test_a_length_between_two_that_were_measured_has_the_wider_thresholds_of_both():
    one = honest()
    tails = ((1, tail(1.1)), (2, tail(1.9)), (4, tail(1.5)))
    means = tuple((start, end, 0.01 * (end - start)) for start, end, _ in one.means)
    whole = dataclasses.replace(calibration(), honest=(dataclasses.replace(one, means=means, tails=tails),))
    standard = whole.standard("bfloat16", "float32", 0, 3)
    assert standard.tail.median[-1] == 1.9
    assert standard.mean == pytest.approx(0.04)
    off_grid = whole.standard("bfloat16", "float32", 1, 3)
    assert off_grid.mean == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("held_in", "codec", "start", "end"),
    [
        ("float16", "float32", 0, 1),
        ("bfloat16", "int8", 0, 1),
        ("bfloat16", "float32", 2, 2),
        ("bfloat16", "float32", 0, 5),
    ],
)
def test_what_was_not_measured_cannot_be_checked(held_in, codec, start, end):
    with pytest.raises(CannotCheck):
        calibration().standard(held_in, codec, start, end)


def test_answers_have_thresholds_of_their_own_by_the_length_of_the_last_span():
    one = answers()
    means = tuple((start, end, 0.02 * (end - start)) for start, end, _ in one.means)
    whole = dataclasses.replace(calibration(), answers=(dataclasses.replace(one, means=means),))
    assert whole.answer_standard("bfloat16", "float32", 3).mean == pytest.approx(0.02)
    assert whole.answer_standard("bfloat16", "float32", 1).mean == pytest.approx(0.08)
    for held_in, start in (("float16", 0), ("bfloat16", 4)):
        with pytest.raises(CannotCheck):
            whole.answer_standard(held_in, "float32", start)


def test_scales_of_a_span_are_the_roots_of_its_blocks_moments_together():
    moments = torch.tensor([[4.0, 1.0, 0.0], [5.0, 3.0, 0.0], [7.0, 0.0, 0.0]])
    small = calibration(hidden_size=3, num_blocks=3, moments=moments)
    assert isinstance(small, Calibration)
    scales = small.scales(0, 2)
    assert scales[:2].tolist() == [3.0, 2.0]
    assert 0 < scales[2] < 0.01
    assert (small.scales(2, 3) > 0).all()
