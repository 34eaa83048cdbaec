"""Every benchmark of a swarm runs, here with tiny settings, and prints one JSON line that holds what it is read for.

How fast anything was is not judged: only that figures are there, are possible, and that tokens were compared.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
CIRCUMSTANCES = {"commit", "machine", "python", "torch", "transformers", "seed", "rounds", "vocab_size", "num_servers"}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads processor time from /proc"),
    pytest.mark.timeout(400),  # each starts a swarm and several clients, with an import of torch in each process
]


def line_of(script, *arguments, code=0):
    """Run a benchmark and return the only line that it writes to stdout."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--rounds", "1", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    (text,) = done.stdout.splitlines()
    line = json.loads(text)
    assert line.keys() > CIRCUMSTANCES
    assert line["bench"] == script.removeprefix("bench_").removesuffix(".py")
    return line


def test_clients():
    numbers = ["--clients", "1", "3", "--generations", "1", "--new-tokens", "6", "--prompt-tokens", "8"]
    one, three = line_of("bench_clients.py", *numbers)["by_clients"]
    assert (one["clients"], three["clients"]) == (1, 3)
    assert one["ratio"] == one["whole_ratio"] == one["slowest_share"] == 1
    for figures in (one, three):
        assert figures["tokens_equal"] is True
        assert figures["tokens_per_s"] > 0
        assert 0 < figures["slowest_share"] <= 1
        assert figures["cpu_ms_per_token"].keys() == {"clients", "client_p2pd", "servers", "server_p2pd"}
        assert figures["cpu_ms_per_token"]["servers"] >= 0
    assert three["ratio"] == pytest.approx(three["tokens_per_s"] / one["tokens_per_s"], rel=0.05)


def test_interleave():
    line = line_of("bench_interleave.py", "--decoders", "2", "--prefill-tokens", "300", "--settle-s", "1")
    assert line["tokens_equal"] is True
    assert line["steps_during"] >= line["decoders"] == 2
    assert 0 < line["p99"] <= line["max"]
    assert 1 <= line["quiet_p99"] <= line["quiet_max"]
    assert line["prefill_alone_s"] > 0
    assert line["prefill_slowdown"] > 0


def test_prefix():
    line = line_of("bench_prefix.py", "--sessions", "2", "--prefix-tokens", "128", "--continuations", "4")
    assert [way["opened"] for way in line["by_way"]] == ["sequential", "concurrent"]
    for way in line["by_way"]:
        assert way["tokens_equal"] is True
        assert way["continuation_tokens"] == 4
        assert way["prefill_ms"] > 0
        assert way["shared"] > 0
        assert way["different"] > 0


def test_decode():
    line = line_of("bench_decode.py", "--vocab-size", "500", "--new-tokens", "6", "--prefill-tokens", "32")
    for work in ("decode_batch_1", "decode_batch_8", "prefill_32"):
        assert line[work]["share"] > 0
