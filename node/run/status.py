"""``efedllm status``: who serves what in a swarm, and what is missing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dht.directory import Directory, read_directory, read_models
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import EMBEDS, HEADS, ManifestRecord
from dht.swarm import Swarm

_WIDTH_OF_A_FILE = 160
"""Columns of the table where no terminal says how many there are: nothing in it is cut."""


async def run_status(join: JoinCode, *, as_json: bool) -> None:
    """Print the models of a swarm with their servers."""
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        models = {record.manifest: record for record in await read_models(swarm)}
        directories = {manifest: await read_directory(swarm, manifest, time.time()) for manifest in models}
    if as_json:
        listed = {_uid(models[key]): _as_json(models[key], directories[key]) for key in models}
        sys.stdout.write(json.dumps({"models": listed}) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    if not models:
        console.print("No model is served in this swarm; start a server with `efedllm serve MODEL --join CODE`.")
    for key, model in models.items():
        console.print(_as_table(model, directories[key]))
        missing = directories[key].missing(model.num_blocks)
        if missing:
            ranges = ", ".join(f"{start}:{end}" for start, end in missing)
            console.print(f"Missing blocks: {ranges}; nobody can generate until someone serves them.")


def _uid(model: ManifestRecord) -> str:
    return f"{model.name}@{model.manifest.hex()[:8]}"


def _as_json(model: ManifestRecord, directory: Directory) -> dict[str, Any]:
    servers = [
        {
            "peer_id": server.owner,
            "blocks": f"{server.start}:{server.end}",
            "state": server.state.name.lower(),
            "score": None,
            "dtype": server.dtype,
            "throughput": server.throughput_milli / 1000,
            "cache_free_tokens": server.cache_free_tokens,
            "version": server.version,
            "ends": [name for bit, name in ((EMBEDS, "embed"), (HEADS, "head")) if server.ends & bit],
        }
        for server in sorted(directory.servers, key=lambda server: (server.start, server.owner))
    ]
    missing = [list(gap) for gap in directory.missing(model.num_blocks)]
    return {
        "num_blocks": model.num_blocks,
        "model_type": model.model_type,
        "manifest": model.manifest.hex(),
        "servers": servers,
        "missing": missing,
    }


def _as_table(model: ManifestRecord, directory: Directory) -> Table:
    title = f"{_uid(model)} ({model.model_type}, {model.num_blocks} blocks)"
    table = Table(title=Text(title), title_justify="left")  # What comes from peers may look like markup.
    for column in ("blocks", "peer", "state", "dtype", "block-tokens/s", "free cache (tokens)", "score"):
        table.add_column(column, overflow="fold")
    for server in sorted(directory.servers, key=lambda server: (server.start, server.owner)):
        cells = (
            f"{server.start}:{server.end}",
            server.owner,
            server.state.name.lower(),
            server.dtype,
            f"{server.throughput_milli / 1000:.0f}",
            str(server.cache_free_tokens),
            "-",
        )
        table.add_row(*map(Text, cells))
    return table
