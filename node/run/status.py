"""``efedllm status``: who serves what in a swarm, and what is missing."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dht.directory import Directory, read_directory, read_models
from dht.errors import DaemonDied, DhtError
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import EMBEDS, HEADS, ManifestRecord
from dht.reputation import ONE, Scores
from dht.standing.ranks import rank_of
from dht.swarm import Swarm
from node.run.standings import board_of

_WIDTH_OF_A_FILE = 160
"""Columns of the table where no terminal says how many there are: nothing in it is cut."""

_SCORES_S = 60.0
"""Seconds that scores are waited for."""


async def run_status(join: JoinCode, anchors: Sequence[str], home: Path, *, as_json: bool) -> None:
    """Print the models of a swarm with their servers.

    Args:
        join: The swarm.
        anchors: Peer ids whose trust counts for this user; none: those of the swarm.
        home: State directory of the node whose findings count here.
        as_json: Whether to print one JSON object.
    """
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        reading = asyncio.create_task(_read_scores(swarm, join, anchors, home))
        models = {record.manifest: record for record in await read_models(swarm)}
        directories = {manifest: await read_directory(swarm, manifest, time.time()) for manifest in models}
        scores = await reading
    if as_json:
        listed = {_uid(models[key]): _as_json(models[key], directories[key], scores) for key in models}
        sys.stdout.write(json.dumps({"models": listed}) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    if not models:
        console.print("No model is served in this swarm; start a server with `efedllm serve MODEL --join CODE`.")
    for key, model in models.items():
        console.print(_as_table(model, directories[key], scores))
        missing = directories[key].missing(model.num_blocks)
        if missing:
            ranges = ", ".join(f"{start}:{end}" for start, end in missing)
            console.print(f"Missing blocks: {ranges}; nobody can generate until someone serves them.")


async def _read_scores(swarm: Swarm, join: JoinCode, anchors: Sequence[str], home: Path) -> Scores | None:
    """Read where everyone stands; None, and a sentence on stderr, where that cannot be had in time."""
    try:
        async with asyncio.timeout(_SCORES_S):
            return (await board_of(swarm, join, anchors, home).refresh()).scores
    except (TimeoutError, DhtError) as error:
        if isinstance(error, DaemonDied):
            raise
        sys.stderr.write(f"Scores are not to be had: {str(error) or f'not within {_SCORES_S:.0f} s'}.\n")
        return None


def _score(scores: Scores | None, peer: str) -> float | None:
    """Give a peer's score, 0 to 1; None while nobody in the swarm is trusted."""
    return round(scores.standing(peer).score / ONE, 4) if scores is not None and scores.has_flow else None


def _standing(scores: Scores | None, peer: str) -> str | None:
    return str(rank_of(scores, peer)) if scores is not None else None


def _uid(model: ManifestRecord) -> str:
    return f"{model.name}@{model.manifest.hex()[:8]}"


def _as_json(model: ManifestRecord, directory: Directory, scores: Scores | None) -> dict[str, Any]:
    servers = [
        {
            "peer_id": server.owner,
            "blocks": f"{server.start}:{server.end}",
            "state": server.state.name.lower(),
            "score": _score(scores, server.owner),
            "standing": _standing(scores, server.owner),
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


def _as_table(model: ManifestRecord, directory: Directory, scores: Scores | None) -> Table:
    title = f"{_uid(model)} ({model.model_type}, {model.num_blocks} blocks)"
    table = Table(title=Text(title), title_justify="left")  # What comes from peers may look like markup.
    for column in ("blocks", "peer", "state", "dtype", "block-tokens/s", "free cache (tokens)", "score", "standing"):
        table.add_column(column, overflow="fold")
    for server in sorted(directory.servers, key=lambda server: (server.start, server.owner)):
        score, standing = _score(scores, server.owner), _standing(scores, server.owner)
        cells = (
            f"{server.start}:{server.end}",
            server.owner,
            server.state.name.lower(),
            server.dtype,
            f"{server.throughput_milli / 1000:.0f}",
            str(server.cache_free_tokens),
            "-" if score is None else f"{score:.2f}",
            standing or "-",
        )
        table.add_row(*map(Text, cells))
    return table
