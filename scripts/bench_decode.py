#!/usr/bin/env python3
"""Measure generation through three servers on loopback beside local transformers, in turn, in one run.

The workload: a Llama-shaped random model (8 layers, hidden 512, fp32), a 64-token prompt and 64 new tokens, one
thread per process. Prints one JSON line; `share` is remote over local, the median over rounds of the ratio within a
round, because absolute times on shared machines do not repeat.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.generation.streamers import BaseStreamer

from node import AutoDistributedModelForCausalLM
from node.run.children import Child

NUM_LAYERS = 8
NUM_SERVERS = 3
PROMPT_TOKENS = 64
NEW_TOKENS = 64
PREFILL_TOKENS = 512
START_TIMEOUT_S = 120.0


class Stopwatch(BaseStreamer):
    """Notes when each step's tokens arrive."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the time; the first call is the prompt itself."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more to note."""


def decode_steps_per_s(model: Any, batch: int) -> float:
    """Generate greedily and return decode steps per second, prefill left out."""
    ids = torch.randint(3, model.config.vocab_size, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    watch = Stopwatch()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        streamer=watch,
    )
    first, last = watch.times_s[1], watch.times_s[-1]
    return (len(watch.times_s) - 2) / (last - first)


def prefill_tokens_per_s(model: Any) -> float:
    """Run one prompt and return its tokens per second."""
    ids = torch.randint(3, model.config.vocab_size, (1, PREFILL_TOKENS), generator=torch.Generator().manual_seed(2))
    started_s = time.perf_counter()
    with torch.no_grad():
        model(input_ids=ids, logits_to_keep=1, use_cache=True)
    return PREFILL_TOKENS / (time.perf_counter() - started_s)


def compare(measure: Callable[[Any], float], local: Any, remote: Any, rounds: int) -> dict[str, float]:
    """Measure local and remote in turn after a warm-up and return medians and the spread of their ratio."""
    measure(local), measure(remote)
    pairs = [(measure(local), measure(remote)) for _ in range(rounds)]
    shares = sorted(theirs / ours for ours, theirs in pairs)
    return {
        "local_per_s": round(statistics.median(ours for ours, _ in pairs), 2),
        "remote_per_s": round(statistics.median(theirs for _, theirs in pairs), 2),
        "share": round(statistics.median(shares), 3),
        "share_min": round(shares[0], 3),
        "share_max": round(shares[-1], 3),
    }


@contextlib.asynccontextmanager
async def swarm(model_dir: Path, homes: Path) -> AsyncIterator[str]:
    """Start a bootstrap and three servers as processes of their own; yield the join code."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    async with contextlib.AsyncExitStack() as exits:
        bootstrap = await exits.enter_async_context(
            Child(["bootstrap", "--private", "--exit-with-stdin"], homes / "bootstrap", extra_environment=one_thread)
        )
        join = (await bootstrap.ready(START_TIMEOUT_S))["join"]
        cuts = [NUM_LAYERS * part // NUM_SERVERS for part in range(NUM_SERVERS + 1)]
        servers = []
        for start, end in itertools.pairwise(cuts):
            arguments = ["serve", str(model_dir), "--join", join, "--blocks", f"{start}:{end}", "--device", "cpu"]
            arguments += ["--num-threads", "1", "--exit-with-stdin"]
            child = Child(arguments, homes / f"server{start}", extra_environment=one_thread)
            servers.append(await exits.enter_async_context(child))
        await asyncio.gather(*(server.ready(START_TIMEOUT_S) for server in servers))
        yield join


def measure_all(local: Any, model_dir: Path, join: str, rounds: int) -> dict[str, dict[str, float]]:
    """Run every workload; a thread of its own, because the client is synchronous."""
    with AutoDistributedModelForCausalLM.from_pretrained(str(model_dir), join=join) as remote:
        return {
            "decode_batch_1": compare(lambda model: decode_steps_per_s(model, 1), local, remote, rounds),
            "decode_batch_8": compare(lambda model: decode_steps_per_s(model, 8), local, remote, rounds),
            "prefill_512": compare(prefill_tokens_per_s, local, remote, rounds),
        }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start the swarm, measure."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    config = LlamaConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        eos_token_id=None,
    )
    with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as directory:
        model_dir = Path(directory) / "model"
        local = AutoModelForCausalLM.from_config(config).eval()
        local.save_pretrained(model_dir)
        async with swarm(model_dir, Path(directory)) as join:
            workloads = await asyncio.to_thread(measure_all, local, model_dir, join, arguments.rounds)
    return {
        "bench": "decode",
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": arguments.seed,
        "rounds": arguments.rounds,
        "vocab_size": arguments.vocab_size,
        "num_servers": NUM_SERVERS,
        **workloads,
    }  # fmt: skip


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds after one warm-up (default: 7)")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    sys.exit(main())
