"""Servers that chose their blocks themselves move to those that have lost theirs, and answers go on meanwhile."""

import time
from pathlib import Path

import torch

from node import AutoDistributedModelForCausalLM
from tests.processes import NodeProcess, run_command
from tests.swarm.models import LLAMA, save

LOOK_S = "2"
MOVED_WITHIN_S = 90.0


def test_a_spare_server_moves_to_the_blocks_that_nobody_holds_any_more(join: str, tmp_path: Path):
    local = save(tmp_path / "balanced", "llama", {**LLAMA, "num_hidden_layers": 4}, seed=7)
    arguments = ["serve", str(tmp_path / "balanced"), "--join", join, "--num-blocks", "2", "--device", "cpu"]
    bounds = ["--num-threads", "1", "--balance-every", LOOK_S, "--max-memory", "1GiB"]
    started: dict[str, NodeProcess] = {}
    spans: dict[str, str] = {}
    try:
        for number in range(3):  # One after the other, so that each sees where those before it are.
            server = NodeProcess([*arguments, *bounds], tmp_path / f"server-{number}")
            ready = server.ready()
            started[ready["peer_id"]], spans[ready["peer_id"]] = server, ready["blocks"]
        assert sorted(set(spans.values())) == ["0:2", "2:4"]
        alone = next(peer for peer in spans if list(spans.values()).count(spans[peer]) == 1)
        with AutoDistributedModelForCausalLM.from_pretrained(str(tmp_path / "balanced"), join=join) as remote:
            settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
            ids = torch.randint(3, 100, (1, 40), generator=torch.Generator().manual_seed(1))
            expected = local.generate(ids, **settings)
            assert torch.equal(remote.generate(ids, **settings), expected)
            assert run_command(["drain"], started[alone].home).returncode == 0
            moved = next_event([server for peer, server in started.items() if peer != alone], "moved")
            assert moved["to"] == spans[alone]
            remote._connector.forget()
            assert torch.equal(remote.generate(ids, **settings), expected)
    finally:
        for server in started.values():
            server.stop()


def next_event(servers: list[NodeProcess], kind: str) -> dict[str, str]:
    """Wait until one of ``servers`` tells an event of ``kind``."""
    deadline_s = time.monotonic() + MOVED_WITHIN_S
    while time.monotonic() < deadline_s:
        for server in servers:
            while not server.events.empty():
                event = server.events.get()
                assert event is not None, server.errors
                if event["event"] == kind:
                    return event
        time.sleep(0.1)
    raise AssertionError([server.errors[-3:] for server in servers])
