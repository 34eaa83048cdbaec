"""The benchmark of round trips runs, here with tiny settings, and prints one JSON line with what it is read for."""

import sys

import pytest

from tests.scripts.test_bench_scripts import line_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds out who dials from /proc"),
    pytest.mark.timeout(400),
]


def test_latency():
    line = line_of("bench_latency.py", "--round-trips-ms", "20", "--new-tokens", "6", "--candidates", "3")
    assert line["tokens_equal"] is True
    assert {(way["round_trip_ms"], way["way"].split()[0]) for way in line["by_way"]} == {
        (round_trip_ms, name) for round_trip_ms in (0, 20) for name in ("plain", "lookup", "draft")
    }
    for way in line["by_way"]:
        assert way["tokens_per_s"] > 0
        if way["way"].startswith("plain"):
            assert way["tokens_per_step"] == 1
            assert way["of_law"] > 0
            assert way["token_ms"] > 2 * way["round_trip_ms"]
        else:
            assert way["over_plain"] > 0
