"""The benchmark of the ledger runs with tiny settings and prints possible figures."""

import json

import bench_ledger


def test_every_figure_is_there_and_possible(capsys, tmp_path):
    assert bench_ledger.main(["--rounds", "1", "--fill", "300", "--directory", str(tmp_path)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["receipts"] == 300
    for name in ("fsync", "check", "reserve", "append", "append_batched"):
        assert 0 < line[f"{name}_cpu_us_min"] <= line[f"{name}_cpu_us"]
        assert line[f"{name}_wall_us"] > 0
    assert 360 < line["bytes_per_receipt"] < 1000
    assert all(line[f"{name}_ms"] > 0 for name in ("open", "newest", "totals", "history"))
    assert list(tmp_path.iterdir()) == []
