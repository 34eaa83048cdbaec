"""``efedllm doctor``: what this machine can give, whether its parts work, and what joining a swarm would give.

Of a model only the config and the headers of its weight files are read.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dht.errors import DhtError
from dht.parameters import JoinCode
from dht.testnet import testnet
from node.errors import DoesNotFit, MissingBlocks, NodeError, UserError
from node.model.checkpoint import Checkpoint
from node.model.devices import free_bytes, pick_device
from node.model.families import CHECKED_FAMILIES, check_family
from node.model.quantise import SCHEMES
from node.run import forecast_words
from node.run.forecast_words import FitRow
from node.run.join_forecast import forecast_join
from node.run.libraries import silence_libraries
from node.run.serve_plan import ServePlan, Wanted, Weights, fit, plan_serving
from node.serve.placement import MIB

_LOOPBACK_S = 0.001
"""Round trip that is assumed between two processes of this machine where it could not be measured, s."""

Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class DoctorOptions:
    """What ``efedllm doctor`` was asked for."""

    model: str | None
    revision: str | None
    home: Path
    join: JoinCode | None
    wanted: Wanted
    num_threads: int | None
    as_json: bool


async def run_doctor(options: DoctorOptions) -> bool:
    """Print what was found; return whether everything works.

    Raises:
        DoesNotFit: the model does not fit as asked; what was found has been printed.
        MissingBlocks: with this machine the swarm still lacks blocks; what was found has been printed.
        UserError: there is no such model, device or block, or the family cannot be split.
        DhtError: the swarm cannot be reached, or does not admit us.
    """
    silence_libraries()
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    device = pick_device(options.wanted.device)
    network, loopback_s = await _try_network()
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "hivemind": importlib.metadata.version("hivemind"),
        "device": str(device),
        "free_memory_mib": free_bytes(device) // MIB,
        "home": str(options.home),
        "home_is_writable": _is_writable(options.home),
        "network": network,
        "families": sorted(CHECKED_FAMILIES),
    }
    lines: Lines = [(name.replace("_", " "), _shown(value)) for name, value in found.items()]
    refusal = await _judge_model(options, options.model, loopback_s, found, lines) if options.model else None
    if refusal is not None:
        found["refusal"] = str(refusal)
    _print(found, lines, as_json=options.as_json)
    if refusal is not None:
        raise refusal
    return bool(found["home_is_writable"]) and network.startswith("works")


def _print(found: dict[str, Any], lines: Lines, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")
        return
    for name, sentence in lines:
        sys.stdout.write(f"{name:18} {sentence}\n")


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


async def _try_network() -> tuple[str, float]:
    """Start two real peers on loopback and let one find what the other stored; return the outcome and a round trip."""
    started_s = time.perf_counter()
    try:
        async with testnet(2) as swarms:
            round_trip_s = await swarms[0].ping(swarms[1].peer_id)
    except (DhtError, OSError) as error:
        return f"fails: {error}", _LOOPBACK_S
    elapsed_s = time.perf_counter() - started_s
    return f"works (two peers in {elapsed_s:.1f} s, ping {round_trip_s * 1000:.1f} ms)", round_trip_s


def _is_writable(home: Path) -> bool:
    nearest = next(path for path in (home, *home.parents) if path.exists())
    return os.access(nearest, os.W_OK)


async def _judge_model(
    options: DoctorOptions, model: str, loopback_s: float, found: dict[str, Any], lines: Lines
) -> NodeError | None:
    """Add what is known of the model to ``found`` and ``lines``; return why it cannot be served, or None."""
    checkpoint = await asyncio.to_thread(_open, model, options)
    rows = await asyncio.to_thread(_fit_rows, checkpoint, options.wanted)
    chosen = next(row for row in rows if row.chosen)
    assert chosen.weights is not None
    assert chosen.fit is not None
    whole = f"{checkpoint.num_blocks} blocks of {max(chosen.weights.block_bytes) / MIB:.1f} MiB"
    if chosen.fit.plan is None:
        refusal = DoesNotFit(forecast_words.does_not_fit(rows))
        found["model"] = f"{whole}; {forecast_words.shortage(chosen.fit)}"
    else:
        refusal = None
        found["model"] = f"{whole}; fits here: {chosen.fit.plan}"
    found["fit"] = [forecast_words.fit_as_json(row) for row in rows]
    lines.append(("model", found["model"]))
    lines += [("fit", forecast_words.fit_in_words(row)) for row in rows]
    if refusal is not None or options.join is None:
        return refusal
    plan = await asyncio.to_thread(plan_serving, options.wanted, checkpoint, lambda _: None)
    return await _judge_joining(plan, options.join, loopback_s, found, lines)


async def _judge_joining(
    plan: ServePlan, join: JoinCode, loopback_s: float, found: dict[str, Any], lines: Lines
) -> NodeError | None:
    forecast = await forecast_join(plan, join, loopback_s)
    found["forecast"] = forecast_words.forecast_as_json(forecast)
    lines += forecast_words.forecast_in_words(forecast, plan.checkpoint.num_blocks)
    return MissingBlocks(forecast_words.blocks_still_missing(forecast)) if forecast.still_missing else None


def _open(model: str, options: DoctorOptions) -> Checkpoint:
    checkpoint = Checkpoint.open(model, revision=options.revision, home=options.home)
    check_family(checkpoint.config)
    return checkpoint


def _fit_rows(checkpoint: Checkpoint, wanted: Wanted) -> list[FitRow]:
    """Return every way to hold the weights; the one that was asked for raises where it is impossible."""
    return [_fit_row(checkpoint, wanted, way, chosen=way == wanted.quantize) for way in (None, *SCHEMES)]


def _fit_row(checkpoint: Checkpoint, wanted: Wanted, quantize: str | None, *, chosen: bool) -> FitRow:
    try:
        weights, found = fit(wanted, checkpoint, quantize)
    except UserError as error:
        if chosen:
            raise
        return FitRow(quantize, chosen, None, None, str(error))
    return FitRow(quantize, chosen, weights, found, _machine_note(weights, chosen=chosen))


def _machine_note(weights: Weights, *, chosen: bool) -> str:
    """Say why this machine cannot compute with ``weights``; empty where it can. Of what is chosen it is an error."""
    try:
        if weights.scheme is not None:
            weights.scheme.check_machine(weights.device)
    except UserError as error:
        if chosen:
            raise
        return str(error)
    return ""
