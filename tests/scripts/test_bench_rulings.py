"""What newcomers read of anchors' rulings is measured on real nodes."""

import json

import bench_rulings


def test_a_newcomer_reads_all_rulings_of_the_anchors(capsys):
    assert bench_rulings.main(["--nodes", "2", "--anchors", "2", "--per-epoch", "1", "--rounds", "1"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["bench"] == "rulings"
    for name in ("first", "again"):
        assert line[name]["records"] == 2 * 359
        assert line[name]["keys"] in (2 * 23, 2 * 24)
        assert line[name]["s_min"] > 0
    assert line["reference"]["records"] == 0
