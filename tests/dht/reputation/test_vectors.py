"""Golden vectors of scores: the same bits at every node, Python and machine; and none of them comes from a float."""

import ast
import json
from pathlib import Path

import pytest

from dht.reputation import (
    ONE,
    Conviction,
    Evidence,
    OpenFail,
    Pass,
    Rejection,
    ScoreRules,
    Succeeded,
    Work,
    decay,
    priority,
    score,
)

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "scores.json").read_text())
ENTRIES = {
    "works": Work, "passes": Pass, "convictions": Conviction, "rejections": Rejection, "open_fails": OpenFail,
    "successions": Succeeded,
}  # fmt: skip


def evidence_of(lists):
    entries = {name: tuple(kind(*entry) for entry in lists[name]) for name, kind in ENTRIES.items()}
    return Evidence(**entries, equivocators=frozenset(lists["equivocators"]))


@pytest.mark.parametrize("vector", VECTORS["scores"], ids=lambda vector: vector["name"])
def test_this_evidence_gives_these_scores_and_this_digest(vector):
    scores = score(evidence_of(vector["evidence"]), vector["anchors"], vector["epoch"], ScoreRules(**vector["rules"]))
    assert {peer: standing._asdict() for peer, standing in scores.standings.items()} == vector["standings"]
    assert scores.typical_flow == vector["typical_flow"]
    assert scores.digest.hex() == vector["digest"]


def test_these_ages_leave_this_much():
    for table in VECTORS["decay"]:
        for age, left in enumerate(table["left"]):
            assert decay(age, table["half_life"]) == left
    assert all(decay(vector["weight"], ONE) == vector["left"] for vector in VECTORS["powers"])


def test_these_histories_give_this_priority():
    for vector in VECTORS["priority"]:
        assert priority(vector["provided"], vector["consumed"]) == vector["priority"]


def test_no_module_of_the_score_has_a_float_a_clock_or_chance():
    for path in (ROOT / "dht" / "reputation").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), path
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), path
            if isinstance(node, ast.Import):
                assert not {name.name for name in node.names} & {"time", "random", "math", "os"}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in {"time", "random", "os", "asyncio"}, path
                assert node.module != "math" or [name.name for name in node.names] == ["isqrt"], path
