"""Scores of whole swarms are computed in time; the benchmark prints the figures."""

import json

import bench_reputation
import pytest


def test_a_swarm_of_two_hundred_is_scored_in_under_a_second(capsys):
    assert bench_reputation.main(["--rounds", "3", "--sizes", "small"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["bench"] == "reputation"
    figures = line["small"]
    assert (figures["peers"], figures["receipts"]) == (200, 28_000)
    assert 0 < figures["reference_s"] < figures["score_s_min"] < 1


@pytest.mark.full
def test_a_swarm_of_a_thousand_is_scored_in_under_five_seconds(capsys):
    assert bench_reputation.main(["--rounds", "2", "--sizes", "large"]) == 0
    figures = json.loads(capsys.readouterr().out)["large"]
    assert (figures["peers"], figures["receipts"]) == (1000, 140_000)
    assert figures["score_s_min"] < 5
