"""Settings that come from the environment; the only file that reads it."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

HOME_VARIABLE = "EFEDLLM_HOME"
"""Directory of everything a node keeps: identity, ledger, caches."""
JOIN_VARIABLE = "EFEDLLM_JOIN"
"""Join code or multiaddrs, where ``--join`` is not given."""
ANCHORS_VARIABLE = "EFEDLLM_ANCHORS"
"""Peer ids whose trust counts, with commas between them, where ``--anchors`` is not given."""

IDENTITY = "identity"
"""In the state directory: the key of its server."""
CLIENT_IDENTITY = "client-identity"
"""Beside it: the key of the clients of that directory."""
LEDGER = "ledger.sqlite"
"""Beside them: the receipts of all of them."""

STANDINGS = "standings.json"
"""Beside them: where everyone stood when a client of that directory last knew."""


def default_home() -> Path:
    """Return the directory that a node keeps its state in: ``EFEDLLM_HOME``, or the platform's data directory."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path(platformdirs.user_data_dir("efedllm", appauthor=False))


def default_join() -> str | None:
    """Return ``EFEDLLM_JOIN``, or None."""
    return os.environ.get(JOIN_VARIABLE) or None


def default_anchors() -> str | None:
    """Return ``EFEDLLM_ANCHORS``, or None."""
    return os.environ.get(ANCHORS_VARIABLE) or None


def child_environment(home: Path) -> dict[str, str]:
    """Return the environment for a node that we start ourselves with the state directory ``home``."""
    return {**os.environ, HOME_VARIABLE: str(home)}
