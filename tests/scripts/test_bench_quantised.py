"""The benchmark of quantised spans compares them with transformers' own model, and with a span of the same work."""

import argparse
from pathlib import Path

import bench_quantised
import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_float32_span_predicts_as_transformers_does_and_fewer_bits_predict_and_weigh_differently():
    found = bench_quantised.measure_quality(argparse.Namespace(corpus=None, text=[README], num_documents=2))
    assert found["num_documents"] == 2
    assert found["local"]["top_token_agreement"] == 1
    assert found["local"]["perplexity_change_percent"] == pytest.approx(0, abs=1e-3)
    ways = found["ways"]
    sizes = [ways[name]["weight_bytes"] for name in ("float32", "bfloat16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    errors = [ways[name]["logits_error_mean"] for name in ("float32", "int8", "int4")]
    assert errors[0] == 0
    assert errors == sorted(errors)
    assert errors[1] < errors[2] < 1


def test_every_way_is_timed_at_every_work_and_the_reference_is_one():
    torch.manual_seed(0)
    found = bench_quantised.measure_speed((2, 64, 128, 4), rounds=1)
    assert found.keys() == bench_quantised.WAYS.keys()
    for name, figures in found.items():
        for work in bench_quantised.WORK:
            assert figures[work]["step_ms"] > 0
            assert figures[work]["ratio"] > 0
            assert name != bench_quantised.REFERENCE or figures[work]["ratio"] == 1
