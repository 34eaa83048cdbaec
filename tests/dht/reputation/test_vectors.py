"""Golden vectors of scores: the same bits at every node, Python and machine; and none of them comes from a float."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from tests.dht.reputation.vectors import ROOT, VECTORS, different_decays, different_priorities, score_of

OTHERS = [f"3.{minor}" for minor in range(11, 15) if minor != sys.version_info.minor]
"""Versions of Python that may lie on this machine beside the one that runs this."""


@pytest.mark.parametrize("vector", VECTORS["scores"], ids=lambda vector: vector["name"])
def test_this_evidence_gives_these_scores_and_this_digest(vector):
    assert score_of(vector) == {name: vector[name] for name in ("standings", "typical_flow", "digest")}


def test_these_ages_leave_this_much():
    assert not different_decays()


def test_these_histories_give_this_priority():
    assert not different_priorities()


def interpreter(version):
    """Return an interpreter of a version, or None; a shim of pyenv's stands for one that need not be there."""
    beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python3"))
    found = str(beside[-1]) if beside else shutil.which(f"python{version}")
    is_there = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    return found if is_there else None


@pytest.mark.parametrize("version", OTHERS)
def test_another_python_finds_the_same(version, tmp_path):
    other = interpreter(version)
    if other is None:
        pytest.skip(f"there is no Python {version} here")
    shutil.copytree(Path(msgpack.__file__).parent, tmp_path / "msgpack", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    done = subprocess.run(
        [other, "-m", "tests.dht.reputation.vectors"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert re.search(rf"^CPython {re.escape(version)}\.\d+ ", done.stdout), done
    assert done.stdout.endswith("different: []\n"), done
    assert done.returncode == 0


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
