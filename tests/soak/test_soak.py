"""Many clients that open, cancel and abandon sessions at random: servers answer right, stay small and get all back."""

import asyncio
import json
import queue
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from node import AutoDistributedModelForCausalLM
from node.model.checkpoint import Checkpoint
from node.serve.placement import WORKING_BYTES
from scripts.bench.report import circumstances
from tests.families import build
from tests.limits.commands import resident_bytes
from tests.processes import NodeProcess, bootstrap, servers
from tests.soak.churn import MAX_LENGTHS, Client, Member, Served, Tally, read_route
from tests.soak.sequences import make_sequences

NUM_CLIENTS = 32
NUM_MEMBERS = 4
SEED = 1
SPANS = ((0, 2), (2, 4), (4, 6))
MODEL = {
    "vocab_size": 128, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}  # fmt: skip
CACHE_BYTES = 16 * 2**20
"""Of each server: about sixteen sessions of medium length, half as many as there are clients."""
MAX_SESSIONS = 20
VANISH_EVERY_S = 9.0
FREE_WITHIN_S = 20.0
GROWTH = 0.05
"""By how much the memory of a server may differ between the second fifth of the time and the last."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory through /proc")


class Soaked(NamedTuple):
    """A swarm with little room, and the model that it serves."""

    join: str
    directory: Path
    local: Any
    processes: list[NodeProcess]


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soaked]:
    """Three servers that cannot take all clients at once, and count nothing: else who abandons sessions has to wait."""
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "home"))
    local = build("llama", MODEL, 0)
    directory = tmp_path / "model"
    local.save_pretrained(directory)
    weight_bytes = Checkpoint.open(str(directory)).span_bytes(*SPANS[0], torch.float32)
    bounds = [
        "--no-receipts",
        "--max-memory",
        str(WORKING_BYTES + weight_bytes + CACHE_BYTES),
        "--max-sessions",
        str(MAX_SESSIONS),
    ]
    with (
        bootstrap(tmp_path / "bootstrap") as (_, join),
        servers(directory, join, SPANS, tmp_path, "--num-threads", "1", *bounds) as processes,
    ):
        yield Soaked(join, directory, local, processes)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(60, marks=pytest.mark.timeout(240)),
        pytest.param(600, marks=[pytest.mark.full, pytest.mark.timeout(900)]),
    ],
)
def test_clients_that_come_and_go_get_right_numbers_or_refusals_and_leave_nothing_behind(
    swarm: Soaked, seconds: int, capsys: pytest.CaptureFixture[str]
):
    tally, resident = asyncio.run(soak(swarm, seconds))
    growth = [growth_of(of_server) for of_server in zip(*resident, strict=True)]
    left = [left_after_all(process) for process in swarm.processes]
    with capsys.disabled():
        figures = {"seconds": seconds, "clients": NUM_CLIENTS, **tally.events, "growth": growth, "left": left}
        print(f"\n{json.dumps({**circumstances('soak', SEED), **figures})}")
    assert tally.failures == []
    assert min(tally.events[kind] for kind in ("opened", "refused", "steps", "close", "cancel", "abandon")) > 0
    assert all(abs(of_server) <= GROWTH for of_server in growth), growth
    assert left == [(0, 0, 0)] * len(SPANS)
    assert [line for process in swarm.processes for line in process.errors if "Traceback" in line] == []
    still_serves(swarm)


async def soak(swarm: Soaked, seconds: int) -> tuple[Tally, list[list[int]]]:
    """Let the clients live for ``seconds``; return what they saw, and the servers' memory once a second, bytes."""
    chance, tally = random.Random(SEED), Tally()
    members = [await Member(swarm.join).__aenter__() for _ in range(NUM_MEMBERS)]
    manifest = Checkpoint.open(str(swarm.directory)).manifest32
    route = await read_route(members[0], manifest, SPANS[-1][1])
    served = Served(manifest, route, make_sequences(swarm.local, 8, max(MAX_LENGTHS)))
    until_s = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for _ in range(NUM_CLIENTS):
            tasks.create_task(Client(served, members, tally, random.Random(chance.random())).live(until_s))
        replacing = tasks.create_task(replace_members(members, swarm.join, tally, until_s))
        watching = tasks.create_task(watch_memory(swarm.processes, until_s))
    assert replacing.done()
    await asyncio.gather(*(member.__aexit__(None, None, None) for member in members))
    return tally, watching.result()


async def replace_members(members: list[Member], join: str, tally: Tally, until_s: float) -> None:
    """Let one member after the other vanish in the middle of its clients' sessions, and another come."""
    while time.monotonic() + VANISH_EVERY_S < until_s:
        await asyncio.sleep(VANISH_EVERY_S)
        members[0].vanish()
        tally.events["vanished"] += 1
        await members[0].__aexit__(None, None, None)
        members.append(await Member(join).__aenter__())
        members.pop(0)


async def watch_memory(processes: list[NodeProcess], until_s: float) -> list[list[int]]:
    """Read the resident memory of every process once a second."""
    samples = []
    while time.monotonic() < until_s:
        samples.append([resident_bytes(process.pid) for process in processes])
        await asyncio.sleep(1)
    return samples


def growth_of(samples: tuple[int, ...]) -> float:
    """Return by which share the last fifth is larger than the second, by medians."""
    fifth = len(samples) // 5
    return round(statistics.median(samples[-fifth:]) / statistics.median(samples[fifth : 2 * fifth]) - 1, 4)


def left_after_all(process: NodeProcess, within_s: float = FREE_WITHIN_S) -> tuple[int, ...]:
    """Wait until a server says that it has no sessions, no cache in use, no streams; return what it said last."""
    deadline_s = time.monotonic() + within_s
    left: tuple[int, ...] = (-1, -1, -1)
    while any(left) and time.monotonic() < deadline_s:
        process.signal(signal.SIGUSR1)
        time.sleep(0.2)
        while True:
            try:
                event = process.events.get_nowait()
            except queue.Empty:
                break
            assert event is not None, "the server has ended"
            if event["event"] == "stats":
                left = (event["sessions"], event["cache_used_bytes"], event["streams"])
    return left


def still_serves(swarm: Soaked) -> None:
    """Generate as an honest client and compare with transformers."""
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    directory = str(swarm.directory)
    with AutoDistributedModelForCausalLM.from_pretrained(directory, join=swarm.join, receipts=False) as remote:
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(remote.generate(ids, **settings), swarm.local.generate(ids, **settings))
