"""The line that a benchmark prints: where and with what it ran, and medians with their spread. Pure but for git."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def circumstances(bench: str, seed: int) -> dict[str, Any]:
    """Return the fields that every benchmark's line begins with."""
    return {
        "bench": bench,
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": seed,
    }


def spread(name: str, values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the median of ``values`` as ``name``, with ``name_min`` and ``name_max``."""
    return {
        name: round(statistics.median(values), digits),
        f"{name}_min": round(min(values), digits),
        f"{name}_max": round(max(values), digits),
    }


def _commit() -> str:
    """Return the commit of the code that was measured; ``-dirty`` says that files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
