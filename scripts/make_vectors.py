#!/usr/bin/env python3
"""Write the golden vectors of records, signatures, committees and scores; the same bytes every time.

They change only when the protocol does, and then with docs/protocol.md and the version of what changed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from golden.committees import all_committees
from golden.edges import all_edges
from golden.records import all_records
from golden.refused import all_refused
from golden.scores import all_scores

ABOUT = "Records of every kind: what follows from seeds and fields; and what every node refuses, and why."
VECTORS = Path(__file__).parent.parent / "tests" / "vectors"


def main() -> None:
    """Write every file into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=VECTORS, help="folder to write to (default: tests/vectors)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    records = {"about": ABOUT, "records": all_records(), "refused": all_refused()}
    _write(out / "records.json", records)
    _write(out / "ed25519_edges.json", all_edges())
    (out / "scores.json").write_text(_in_lines(all_scores()))
    _write(out / "committees.json", all_committees())


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _in_lines(content: dict[str, Any]) -> str:
    """Write one entry of each list in a line: most are long rows of numbers."""
    parts = []
    for name, value in content.items():
        entries = ",\n  ".join(map(json.dumps, value)) if isinstance(value, list) else None
        parts.append(f" {json.dumps(name)}: " + (json.dumps(value) if entries is None else f"[\n  {entries}\n ]"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
