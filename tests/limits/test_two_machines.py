"""Two machines, each with an address of its own: ``--listen`` opens a node to the other, ``--announce`` tells where."""

import json
from pathlib import Path

import pytest
import torch

from tests.limits.namespaces import can_make_namespaces, two_machines
from tests.limits.small_swarm import NUM_BLOCKS, save_model
from tests.processes import NodeProcess, run_command

PROMPT = "This package provides"
PORT = 31338

pytestmark = pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces cannot be made here")


def expected_text(directory: Path, local: object) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        ids = local.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_client_generates_through_servers_of_both_machines(tmp_path: Path):
    model = tmp_path / "model"
    local = save_model(model)
    started: list[NodeProcess] = []
    with two_machines() as (left, right):
        try:
            with left.inside():
                listen = f"/ip4/{left.address}/tcp/31337"
                first = NodeProcess(
                    ["bootstrap", "--private", "--listen", listen], tmp_path / "bootstrap", is_forked=False
                )
                started.append(first)
                ready = first.ready()
                assert all(address.startswith(listen) for address in ready["initial_peers"])
                serve = ["serve", str(model), "--join", ready["join"], "--device", "cpu"]
                narrow = [*serve, "--blocks", "0:3", "--listen", f"/ip4/{left.address}/tcp/0"]
                started.append(NodeProcess(narrow, tmp_path / "left", is_forked=False))
            with right.inside():
                announced = f"/ip4/{right.address}/tcp/{PORT}"
                wide = ["--blocks", f"3:{NUM_BLOCKS}", "--listen", f"/ip4/0.0.0.0/tcp/{PORT}", "--announce", announced]
                started.append(NodeProcess([*serve, *wide], tmp_path / "right", is_forked=False))
            for process in started[1:]:
                process.ready()
            ask = ["generate", str(model), "--join", ready["join"], "--prompt", PROMPT, "--greedy"]
            for machine in (left, right):
                with machine.inside():
                    answer = run_command([*ask, "--max-new-tokens", "8"], tmp_path / "client")
                assert answer.returncode == 0, answer.stderr
                assert answer.stdout.rstrip("\n") == expected_text(model, local).rstrip("\n")
        finally:
            for process in reversed(started):
                process.stop()
        assert any(announced in line for line in started[2].errors)


def test_a_node_that_listens_on_loopback_is_not_reached_from_another_machine(tmp_path: Path):
    with two_machines() as (left, right):
        with left.inside():
            hidden = NodeProcess(["bootstrap", "--private"], tmp_path / "bootstrap", is_forked=False)
        try:
            join = hidden.ready()["join"]
            with right.inside():
                outside = run_command(["status", "--join", join], tmp_path / "client")
            with left.inside():
                inside = run_command(["status", "--join", join, "--json"], tmp_path / "client")
        finally:
            hidden.stop()
    assert any("Only this machine can reach it" in line for line in hidden.errors)
    assert outside.returncode == 8
    assert len(outside.stderr.splitlines()) == 1
    assert json.loads(inside.stdout) == {"models": {}}
