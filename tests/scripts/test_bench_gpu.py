"""The benchmark of GPUs runs on a CPU too, on the same work; how fast anything is there is not judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_gpu
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def test_a_tiny_span_is_measured_on_a_cpu_and_gives_what_transformers_gives():
    done = run("--device", "cpu", "--smoke", "--rounds", "1", "--steps", "2")
    assert done.returncode == 0, done.stderr
    (text,) = done.stdout.splitlines()
    line = json.loads(text)
    assert (line["bench"], line["device"], line["shape"], line["context"]) == ("gpu", "cpu", "smoke", 300)
    assert min(line["bytes_per_s"].values()) > 0
    assert {name: [case["batch"] for case in cases] for name, cases in line["spans"].items()} == {
        "2 blocks": [1, 3],
        "3 blocks": [1, 3],
    }
    for cases in line["spans"].values():
        for case in cases:
            assert 0 < case["difference"] < 1e-3
            assert min(case[way]["step_ms"] for way in ("eager", "ragged", "static")) > 0
            assert 0 < case["share_of_floor"]["share"] < 1
            assert case["speedup"]["ratio"] > 0


def test_the_bytes_of_the_floor_are_those_of_weights_and_histories():
    hidden, intermediate, dim = 64, 128, 16
    attention = 2 * hidden * hidden + 2 * hidden * 2 * dim
    block = attention + 3 * hidden * intermediate + 2 * hidden
    span, num_bytes = bench_gpu.new_span(bench_gpu.SETTINGS["smoke"], 3, torch.device("cpu"))
    assert num_bytes == 3 * 4 * block
    assert span.cache_bytes_per_position == 3 * 4 * 2 * 2 * dim
    assert bench_gpu.floor_ms(5e9, 2.5e12) == 2


def test_shares_and_speedups_are_ratios_of_the_same_round():
    found = bench_gpu.describe({"eager": [9.0, 8.0], "ragged": [6.0, 4.0], "static": [3.0, 2.0]}, 1.5)
    assert found["share_of_floor"] == {"share": 0.625, "share_min": 0.5, "share_max": 0.75}
    assert found["speedup"] == {"ratio": 3.5, "ratio_min": 3, "ratio_max": 4}
    assert found["speedup_over_ragged"] == {"ratio": 2, "ratio_min": 2, "ratio_max": 2}


@torch.inference_mode()
def test_every_round_begins_behind_the_same_histories():
    span, _ = bench_gpu.new_span(bench_gpu.SETTINGS["smoke"], 2, torch.device("cpu"))
    sessions = bench_gpu.Sessions(span, 3, 20, 4)
    first = sessions.run_eager(), sessions.run_ragged()
    sessions.rewind()
    torch.testing.assert_close(sessions.run_static(), first[0])
    torch.testing.assert_close(first[1], first[0])
    sessions.step_ms(sessions.run_eager, 2)
    torch.testing.assert_close(sessions.run_eager(), first[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence_and_ends_with_a_code_of_its_own():
    done = run()
    assert done.returncode == bench_gpu.NO_GPU
    assert not done.stdout
    assert done.stderr.splitlines()[-1].startswith("This machine has no GPU that torch can use")
