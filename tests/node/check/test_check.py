"""A span's honest work passes, and whoever cheats on it, however little of a chunk, does not."""

import dataclasses
import itertools
import math

import pytest
import torch

from node.check.check import (
    CheckResult,
    Piece,
    Verdict,
    Work,
    check_span,
    judge,
    judge_pool,
    nearest_arrival,
    through_codec,
)
from node.check.statistics import MIN_POOLED
from node.errors import BadOpening, CannotCheck
from node.model.checkpoint import Checkpoint
from node.model.fingerprint import increment_errors
from node.model.span import build_span
from node.model.tensors import codec_of, to_payload
from tests.families import FAMILIES, STATEFUL, build
from tests.node.check.figures import calibration

CPU = torch.device("cpu")
HIDDEN = 32
CODECS = ("float32", "float16", "bfloat16", "int8")
FIGURES = calibration(HIDDEN, kinds=[("bfloat16", codec) for codec in CODECS] + [("float32", "float32")])


def span_of(family, values, directory):
    build(family, values).save_pretrained(directory)
    checkpoint = Checkpoint.open(str(directory))
    tensors = checkpoint.load_span(1, 3, dtype=torch.float32)
    return build_span(checkpoint.config, tensors, 1, 3, dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def span(tmp_path_factory):
    return span_of("llama", FAMILIES["llama"], tmp_path_factory.mktemp("model"))


def hidden_states(positions, rows=1, seed=0):
    return torch.randn(rows, positions, HIDDEN, generator=torch.Generator().manual_seed(seed))


def pieces(hidden, codec, cuts=()):
    bounds = [0, *cuts, hidden.shape[1]]
    return tuple(
        Piece(bytes(to_payload(hidden[:, first:last], codec)), last - first)
        for first, last in itertools.pairwise(bounds)
        if last > first
    )


def work_of(inputs, outputs, codec="float32", padding=(), cuts=()):
    return Work(inputs.shape[0], HIDDEN, codec, pieces(inputs, codec, cuts), pieces(outputs, codec), padding)


def run(span, inputs, codec="float32", padding=None):
    column = None if padding is None else torch.tensor(padding)
    given = through_codec(inputs, codec).to(span.dtype)
    return span.forward(given, span.new_cache(inputs.shape[1], inputs.shape[0]), column)


@pytest.mark.parametrize("codec", CODECS)
def test_honest_work_passes_in_every_codec(span, codec):
    inputs = hidden_states(130)
    outputs = run(span, inputs, codec)[:, 64:128]
    result = check_span(span, work_of(inputs[:, :128], outputs, codec, cuts=(30, 64)), FIGURES, "bfloat16")
    assert result.verdict is Verdict.PASS, result
    assert result.statistics.num_positions == 64


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8"])
def test_a_number_between_two_of_the_codecs_may_go_to_either(codec):
    reference = hidden_states(64)
    inputs, ones = torch.zeros_like(reference), torch.ones(HIDDEN)
    rounded = through_codec(reference, codec)
    other = through_codec(reference + 0.02 * (reference - rounded).sign() * reference.abs(), codec)
    between = (rounded + other) / 2  # Nothing tells to which of both it belongs.
    for arrived in (through_codec(between * (1 - 1e-7), codec), through_codec(between * (1 + 1e-7), codec)):
        due = nearest_arrival(between, arrived, codec)
        plain = increment_errors(inputs[0], arrived[0], through_codec(between, codec)[0], ones)
        assert increment_errors(inputs[0], arrived[0], due[0], ones).max() <= plain.max()
    # Whoever is a step off where there is no doubt is as far off as before.
    off = through_codec(1.05 * reference, codec)
    before = increment_errors(inputs[0], off[0], rounded[0], ones)
    after = increment_errors(inputs[0], off[0], nearest_arrival(reference, off, codec)[0], ones)
    torch.testing.assert_close(after, before, rtol=0.02, atol=1e-4)


def test_an_honest_server_is_not_charged_with_a_whole_step_of_the_codec():
    reference = torch.full((1, 1, HIDDEN), 1 + 2**-8)  # Half way between 1 and the next bfloat16.
    arrived = through_codec(reference * (1 + 1e-6), "bfloat16")
    assert float((arrived - through_codec(reference, "bfloat16")).abs().max()) > 0.005
    assert torch.equal(nearest_arrival(reference, arrived, "bfloat16"), arrived)
    broken = torch.full_like(arrived, math.nan)
    assert torch.isfinite(nearest_arrival(reference, broken, "bfloat16")).all()


def test_work_decoded_token_by_token_passes(span):
    inputs = hidden_states(20)
    cache = span.new_cache(20)
    outputs = torch.cat([span.forward(token, cache) for token in inputs.split(1, dim=1)], dim=1)
    work = Work(1, HIDDEN, "float32", pieces(inputs, "float32", range(1, 20)), pieces(outputs, "float32", range(1, 20)))
    assert check_span(span, work, FIGURES, "float32").verdict is Verdict.PASS


@pytest.mark.parametrize("num_corrupted", [1, 7, 31, 64])
def test_who_leaves_out_the_span_at_any_number_of_positions_fails(span, num_corrupted):
    inputs = hidden_states(64)
    outputs = run(span, inputs).clone()
    outputs[:, 64 - num_corrupted :] = inputs[:, 64 - num_corrupted :]
    result = check_span(span, work_of(inputs, outputs), FIGURES, "bfloat16")
    assert result.verdict is Verdict.FAIL
    assert result.statistics.largest == pytest.approx(1, abs=1e-3)


def test_who_forgets_the_prefix_fails(span):
    inputs = hidden_states(128)
    outputs = run(span, inputs[:, 64:])
    assert check_span(span, work_of(inputs, outputs), FIGURES, "bfloat16").verdict is Verdict.FAIL


def test_what_is_no_number_fails_and_inputs_that_are_none_say_nothing(span):
    inputs = hidden_states(16)
    outputs = run(span, inputs).clone()
    outputs[0, 3, 4] = math.nan
    assert check_span(span, work_of(inputs, outputs), FIGURES, "bfloat16").verdict is Verdict.FAIL
    broken = inputs.clone()
    broken[0, 0, 0] = math.inf
    result = check_span(span, work_of(broken, outputs), FIGURES, "bfloat16")
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no numbers" in result.reason


def test_one_bad_row_of_several_fails_the_chunk(span):
    inputs = hidden_states(16, rows=3)
    outputs = run(span, inputs).clone()
    assert check_span(span, work_of(inputs, outputs), FIGURES, "bfloat16").verdict is Verdict.PASS
    outputs[2, 5] = inputs[2, 5]
    assert check_span(span, work_of(inputs, outputs), FIGURES, "bfloat16").verdict is Verdict.FAIL


def test_padded_rows_are_run_padded_and_padding_is_not_compared(span):
    inputs, padding = hidden_states(16, rows=2), (0, 10)
    outputs = run(span, inputs, padding=padding).clone()
    outputs[1, :10] = 7.0
    work = work_of(inputs, outputs[:, 8:], padding=padding)
    assert check_span(span, work, FIGURES, "float32").verdict is Verdict.PASS
    unpadded = dataclasses.replace(work, left_padding=())
    assert check_span(span, unpadded, FIGURES, "float32").verdict is Verdict.FAIL


def test_a_chunk_of_padding_alone_says_nothing(span):
    inputs = hidden_states(4)
    result = check_span(span, work_of(inputs, inputs, padding=(4,)), FIGURES, "bfloat16")
    assert (result.verdict, result.statistics) == (Verdict.INCONCLUSIVE, None)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_next"])
def test_families_that_keep_a_state_are_checked_like_others(family, tmp_path):
    span = span_of(family, STATEFUL[family], tmp_path)
    assert span.state is not None
    inputs = hidden_states(24)
    outputs = run(span, inputs).clone()
    figures = calibration(HIDDEN, kinds=[("float32", "float32")], mean=1e-4)
    assert check_span(span, work_of(inputs, outputs[:, 16:]), figures, "float32").verdict is Verdict.PASS
    forgotten = run(span, inputs[:, 16:])
    assert check_span(span, work_of(inputs, forgotten), figures, "float32").verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "float64"},
        {"codec": "logits"},
        {"rows": 2},
        {"rows": 0},
        {"inputs": ()},
        {"outputs": ()},
        {"inputs": (Piece(bytes(10), 1),)},
        {"inputs": (Piece(b"", 0),)},
        {"inputs": (Piece(bytes(4 * HIDDEN), -1),)},
        {"outputs": (Piece(bytes(4 * HIDDEN * 9), 9),)},
        {"left_padding": (1, 2)},
        {"left_padding": (-1,)},
        {"hidden_size": 16},
    ],
)
def test_an_opening_whose_sizes_contradict_each_other_is_refused(span, changes):
    inputs = hidden_states(8)
    work = dataclasses.replace(work_of(inputs, inputs), **changes)
    with pytest.raises(CannotCheck if "codec" in changes else BadOpening):
        check_span(span, work, FIGURES, "bfloat16")


def test_a_chunk_is_no_longer_than_a_window(span):
    inputs = hidden_states(65)
    with pytest.raises(BadOpening, match="65 positions"):
        check_span(span, work_of(inputs, inputs), FIGURES, "bfloat16")


def test_a_check_larger_than_was_allowed_is_refused_before_it_is_begun(span):
    inputs = hidden_states(8)
    with pytest.raises(CannotCheck, match="more than the 1,000 allowed"):
        check_span(span, work_of(inputs, inputs), FIGURES, "bfloat16", max_bytes=1000)


def judged(errors, held_in="bfloat16") -> CheckResult:
    return judge([errors], FIGURES.standard(held_in, "float32", 1, 3))


@pytest.mark.parametrize(
    ("errors", "verdict", "word"),
    [
        ([0.01] * 64, Verdict.PASS, "honest"),
        ([0.02] * 64, Verdict.INCONCLUSIVE, "median"),
        ([0.03] * 64, Verdict.FAIL, "median"),
        ([0.01] * 33 + [0.045] * 31, Verdict.FAIL, "upper tenth"),
        ([0.01] * 63 + [0.09], Verdict.INCONCLUSIVE, "largest"),
        ([0.01] * 63 + [0.13], Verdict.FAIL, "largest"),
    ],
)
def test_each_statistic_decides_where_it_is_the_worst(errors, verdict, word):
    result = judged(errors)
    assert (result.verdict, word in result.reason) == (verdict, True), result


def test_a_server_that_is_always_somewhat_worse_fails_in_the_pool_and_in_no_chunk():
    result = judged([0.0165] * 64)
    assert result.verdict is Verdict.PASS
    limit = FIGURES.standard("bfloat16", "float32", 1, 3).pooled_limit
    assert judge_pool([result.ratio] * (MIN_POOLED - 1), limit) is Verdict.INCONCLUSIVE
    assert judge_pool([result.ratio] * MIN_POOLED, limit) is Verdict.FAIL
    assert judge_pool([1.0] * MIN_POOLED, limit) is Verdict.INCONCLUSIVE


def test_the_wire_names_the_dtypes_that_calibrations_know():
    assert {codec_of(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)} <= {*CODECS}


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8"])
def test_what_float32_does_not_tell_apart_is_no_error_behind_any_codec(codec):
    reference = torch.randn(8, 512, 96, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(4))
    arrived = through_codec(reference * (1 + 1e-6 * noise), codec)
    inputs, ones = torch.zeros(96), torch.ones(96)
    plain = increment_errors(inputs, arrived, through_codec(reference, codec), ones)
    errors = increment_errors(inputs, arrived, nearest_arrival(reference, arrived, codec), ones)
    assert plain.max() > 1e-4  # Some number has gone the other way.
    assert errors.max() < 1e-5
