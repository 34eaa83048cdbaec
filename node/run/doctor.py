"""``efedllm doctor``: what this machine can give, and whether its parts work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dht.errors import DhtError
from dht.testnet import testnet
from node.errors import DoesNotFit
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes, pick_device, pick_dtype
from node.model.families import CHECKED_FAMILIES, check_family
from node.run.libraries import silence_libraries
from node.serve.placement import MIB, plan_memory


async def run_doctor(model: str | None, home: Path, *, device: str, dtype: str, as_json: bool) -> bool:
    """Print what was found; return whether everything works."""
    silence_libraries()
    where = pick_device(device)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "hivemind": importlib.metadata.version("hivemind"),
        "device": str(where),
        "free_memory_mib": free_bytes(where) // MIB,
        "home": str(home),
        "home_is_writable": _is_writable(home),
        "network": await _try_network(),
        "families": sorted(CHECKED_FAMILIES),
    }
    if model is not None:
        found["model"] = _judge_model(model, home, where, dtype)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name, value in found.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            sys.stdout.write(f"{name.replace('_', ' '):18} {shown}\n")
    return bool(found["home_is_writable"]) and str(found["network"]).startswith("works")


async def _try_network() -> str:
    """Start two real peers on loopback and let one find what the other stored."""
    started_s = time.perf_counter()
    try:
        async with testnet(2) as swarms:
            round_trip_s = await swarms[0].ping(swarms[1].peer_id)
    except (DhtError, OSError) as error:
        return f"fails: {error}"
    return f"works (two peers in {time.perf_counter() - started_s:.1f} s, ping {round_trip_s * 1000:.1f} ms)"


def _is_writable(home: Path) -> bool:
    nearest = next(path for path in (home, *home.parents) if path.exists())
    return os.access(nearest, os.W_OK)


def _judge_model(model: str, home: Path, device: torch.device, dtype_name: str) -> str:
    checkpoint = Checkpoint.open(model, home=home)
    check_family(checkpoint.config)
    dtype = pick_dtype(dtype_name, getattr(checkpoint.config, "dtype", None), device)
    sizes = [checkpoint.span_bytes(block, block + 1, dtype) for block in range(checkpoint.num_blocks)]
    whole = f"{checkpoint.num_blocks} blocks of {max(sizes) / MIB:.1f} MiB"
    try:
        return f"{whole}; fits here: {plan_memory(free_bytes(device), sizes, None)}"
    except DoesNotFit as error:
        return f"{whole}; {error}"
