"""What the network adds to a decode step: three server processes against the same three spans in this process."""

import statistics
import time

import pytest
import torch

from node.client.distributed_model import build_model
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from tests.families import VOCABULARY
from tests.in_process import InProcessSwarm
from tests.swarm.models import SPANS

HOP_BUDGET_MS = 5.0
"""Milliseconds that a stage may add to a decode step beside its computing: one frame through two p2pds, two event loops
and a hand-over to the engine's thread. It takes about 1 ms on an idle machine; with other work on both cores
each of the four wake-ups of a hop may wait for a scheduler's slice of a millisecond. Processes, forks and polls on the
path, which this test is there to notice, cost 10 ms."""
NUM_ROUNDS = 4
NUM_STEPS = 40


@pytest.fixture
def in_process(llama):
    """The client's model over the same spans without sockets or processes."""
    checkpoint = Checkpoint.open(str(llama.directory))
    here = {"dtype": torch.float32, "device": torch.device("cpu")}
    spans = [
        build_span(checkpoint.config, checkpoint.load_span(start, end, **here), start, end, **here)
        for start, end in SPANS
    ]
    model, blocks = build_model(checkpoint.config, checkpoint.load_client(**here), **here)
    model.attach(InProcessSwarm(spans, checkpoint.config.hidden_size), blocks, max_length=64)
    return model


@torch.no_grad()
def decode_step_ms(model):
    """Return the median of the times of single decode steps of one session."""
    ids = torch.randint(3, VOCABULARY, (1, NUM_STEPS + 8), generator=torch.Generator().manual_seed(1))
    times_ms = []
    with model.inference_session(max_length=NUM_STEPS + 8):
        model(ids[:, :8])
        for at in range(8, NUM_STEPS + 8):
            started_s = time.perf_counter()
            model(ids[:, at : at + 1])
            times_ms.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(times_ms)


def test_a_hop_costs_less_than_its_budget(llama, in_process):
    decode_step_ms(llama.remote), decode_step_ms(in_process)
    rounds = [(decode_step_ms(llama.remote), decode_step_ms(in_process)) for _ in range(NUM_ROUNDS)]
    # The best round: a stall of a shared machine makes others worse and none better.
    per_hop_ms = min((remote_ms - local_ms) / len(SPANS) for remote_ms, local_ms in rounds)
    for remote_ms, local_ms in rounds:
        print(f"decode step: {remote_ms:.2f} ms through {len(SPANS)} processes, {local_ms:.2f} ms in one")
    print(f"added per hop: {per_hop_ms:.2f} ms, {HOP_BUDGET_MS} ms allowed")
    assert per_hop_ms < HOP_BUDGET_MS
