"""A forecast in words and as JSON: nothing that JSON does not know, no figure finer than it is, no promise too many."""

import json
import math
from dataclasses import replace

import pytest
import torch

from node.run.forecast_words import (
    FitRow,
    blocks_still_missing,
    does_not_fit,
    fit_as_json,
    fit_in_words,
    forecast_as_json,
    forecast_in_words,
)
from node.run.join_forecast import JoinForecast, StageForecast
from node.run.serve_plan import Weights
from node.serve.forecast import Factor, Machine, StepCost, Weakest, generation_rate, judge_fit, span_rate
from node.serve.placement import MIB, WORKING_BYTES

OWN = StepCost(memory_s=0.01234, compute_s=0.001)
FORECAST = JoinForecast(
    span=(2, 4), read_bytes=5 * MIB, machine=Machine(1.2345e10, 9.8765e10, 2e-4, 3e-4), own=span_rate(OWN),
    num_servers=1, num_joining=0, missing=((2, 4),), weakest=Weakest(2, 4, 0.0), weakest_with=Weakest(0, 2, 40.0),
    still_missing=(), more_machines=0,
    stages=(StageForecast("peer", 0, 2, 0.02, 0.004), StageForecast(None, 2, 4, OWN.total_s, None)),
    generation=generation_rate(OWN, [("peer", 0.02)], [0.004, 0.004, 0.001], 0.002), today=None, num_unmeasured=0,
)  # fmt: skip


def row(quantize, free_bytes, *, chosen=False, size=MIB):
    weights = Weights(torch.device("cpu"), torch.float32, None, (size,) * 4)
    return FitRow(quantize, chosen, weights, judge_fit(free_bytes, [size] * 4, 4), "")


def told(forecast):
    return dict(forecast_in_words(forecast, 4))


def test_figures_have_two_digits():
    found = forecast_as_json(FORECAST)
    assert found["machine"]["memory_bytes_per_s"] == 1.2e10
    assert found["span"]["tokens_per_s"] == 75
    assert found["with_you"]["limit"] == "another server"
    assert found["with_you"]["limit_peer"] == "peer"
    assert "12 GB of weights a second" in told(FORECAST)["this machine"]


def test_a_server_that_announces_no_rate_gives_valid_json_and_a_sentence():
    hopeless = generation_rate(OWN, [("peer", math.inf)], [0.004, 0.004, 0.001], 0.002)
    found = forecast_as_json(replace(FORECAST, generation=hopeless))
    json.dumps(found, allow_nan=False)
    assert found["with_you"]["tokens_per_s"] == 0
    assert [term["ms"] for term in found["with_you"]["terms_ms"] if term["peer_id"]] == [None]
    assert "about 0 tokens/s" in told(replace(FORECAST, generation=hopeless))["with this machine"]


@pytest.mark.parametrize("factor", list(Factor))
def test_every_limit_is_named_and_has_a_mend(factor):
    costs = dict.fromkeys(Factor, 0.001) | {factor: 1.0}
    rate = generation_rate(
        StepCost(costs[Factor.MEMORY], costs[Factor.COMPUTE]), [("peer", costs[Factor.SERVER])],
        [costs[Factor.ROUND_TRIP]] * 2, costs[Factor.CLIENT],
    )  # fmt: skip
    lines = told(replace(FORECAST, generation=rate))
    assert f"the limit is {factor.value}" in lines["with this machine"]
    assert len(lines["helps most"]) > 40


def test_it_is_said_when_a_session_is_faster_without_this_machine():
    faster = generation_rate(None, [("peer", 0.001)], [0.001, 0.001], 0.001)
    assert "not make one faster" in told(replace(FORECAST, today=faster))["with this machine"]
    slower = generation_rate(None, [("peer", 1.0)], [0.001, 0.001], 0.001)
    assert "not make one faster" not in told(replace(FORECAST, today=slower))["with this machine"]


def test_a_gap_is_told_with_the_machines_that_it_takes():
    lacking = replace(FORECAST, still_missing=((0, 2), (5, 6)), more_machines=2, generation=None, stages=())
    assert "the blocks 0:2, 5:6 would still have no server: 2 more machines of 2 blocks" in blocks_still_missing(
        lacking
    )
    assert "with this machine" not in told(lacking)
    assert forecast_as_json(lacking)["with_you"] is None


def test_what_does_not_fit_is_told_with_what_would():
    free = WORKING_BYTES + 2 * MIB
    rows = [
        row(None, free, chosen=True),
        row("int8", free, size=MIB // 4),
        FitRow("int4", False, None, None, "Why not."),
    ]
    sentence = does_not_fit(rows)
    assert "514.0 MiB are free, 2.0 MiB are missing" in sentence
    assert "--quantize int8 would hold 4 blocks" in sentence
    assert "int4" not in sentence
    assert [found["fits"] for found in map(fit_as_json, rows)] == [False, True, False]
    assert fit_as_json(rows[0])["missing_mib"] == 2
    assert fit_in_words(rows[2]) == "int4: Why not."
    assert "does not fit" in fit_in_words(rows[0])
