"""The protocol names every code with which this program refuses something."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE_AT = {"Refused": 0, "Refuse": 1}
"""Which argument is the code."""


def codes_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CODE_AT:
            at = CODE_AT[node.func.id]
            code = node.args[at] if len(node.args) > at else None
            if isinstance(code, ast.Constant) and code.value:
                yield code.value


def test_every_refusal_code_stands_in_the_protocol():
    text = (ROOT / "docs" / "protocol.md").read_text()
    (listed,) = re.findall(r"^- Refusal codes, retryable:.*?(?=^- )", text, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([a-z_]+)`", listed))
    used = {code for path in (ROOT / "node").rglob("*.py") for code in codes_in(path.read_text())}
    assert len(used) > 12
    assert used - named == set()
