"""Serving from a hub: every server fetches the shards of its span and no others, once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer, serve_hub
from tests.limits.small_swarm import NUM_BLOCKS, save_model
from tests.processes import NodeProcess, run_command

REPOSITORY = "org/small"
HEADER_BYTES = 128 * 2**10
"""At most so much is read of a shard that is not fetched, to learn which tensors it holds."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with one model, cut into a shard for about every block."""
    whole, sharded = (tmp_path_factory.mktemp("hub") / name for name in ("whole", "sharded"))
    model = save_model(whole, seed=2, vocab_size=4096, hidden_size=64, intermediate_size=512, head_dim=16)
    model.save_pretrained(sharded, max_shard_size="450KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, sharded / name)
    with serve_hub({REPOSITORY: sharded}) as server:
        yield server


def _shards_of(hub: HubServer, part: str) -> set[str]:
    import json

    index = json.loads((hub.repositories[REPOSITORY] / "model.safetensors.index.json").read_text())["weight_map"]
    blocks = {name: int(name.split(".")[2]) if ".layers." in name else None for name in index}
    if part == "client":
        return {file for name, file in index.items() if blocks[name] is None}
    start, end = map(int, part.split(":"))
    return {file for name, file in index.items() if blocks[name] is not None and start <= blocks[name] < end}


def _weights_sent(hub: HubServer) -> dict[str, int]:
    return {file: size for file, size in hub.sent_bytes.items() if file.endswith(".safetensors")}


def _sizes(hub: HubServer, files: set[str]) -> dict[str, int]:
    return {file: (hub.repositories[REPOSITORY] / file).stat().st_size for file in files}


def _serve(hub: HubServer, join: str, blocks: str, home: Path) -> dict[str, Any]:
    """Start a server, take what it sent over the wire from the hub's log, and stop it."""
    hub.sent_bytes.clear()
    command = ["serve", REPOSITORY, "--join", join, "--blocks", blocks, "--device", "cpu"]
    process = NodeProcess(command, home, _environment(hub, home))
    try:
        return process.ready()
    finally:
        process.stop()


def _environment(hub: HubServer, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hub")}


def test_a_server_fetches_its_own_shards_and_the_second_time_none(hub: HubServer, join: str, tmp_path: Path):
    shards = _shards_of(hub, "2:4")
    assert shards < _shards_of(hub, f"0:{NUM_BLOCKS}")
    ready = _serve(hub, join, "2:4", tmp_path)
    assert ready["model"].startswith(f"{REPOSITORY}@") or ready["model"].startswith("small@")
    sent = _weights_sent(hub)
    whole = _sizes(hub, shards)
    assert {file for file in sent if sent[file] >= whole.get(file, 2**60)} == shards
    assert all(sent[file] <= HEADER_BYTES < whole_file for file, whole_file in _sizes(hub, set(sent) - shards).items())
    again = _serve(hub, join, "2:4", tmp_path)
    assert again["model"] == ready["model"]
    assert all(file not in shards for file in _weights_sent(hub))


def test_a_client_fetches_only_what_stands_outside_the_blocks(hub: HubServer, join: str, tmp_path: Path):
    command = ["serve", REPOSITORY, "--join", join, "--blocks", f"0:{NUM_BLOCKS}", "--device", "cpu"]
    server = NodeProcess(command, tmp_path / "server", _environment(hub, tmp_path / "server"))
    try:
        server.ready()
        hub.sent_bytes.clear()
        ask = ["generate", REPOSITORY, "--join", join, "--prompt", "This package", "--max-new-tokens", "4", "--greedy"]
        home = tmp_path / "client"
        answer = run_command(ask, home, **_environment(hub, home))
    finally:
        server.stop()
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    whole, sent = _sizes(hub, _shards_of(hub, "client")), _weights_sent(hub)
    assert {file for file in sent if sent[file] >= whole.get(file, 2**60)} == set(whole)
