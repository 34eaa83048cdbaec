#!/usr/bin/env python3
"""Measure generation through three servers on loopback beside local transformers, in turn, in one run.

The workload: a Llama-shaped random model (8 layers, hidden 512, fp32), a 64-token prompt and 64 new tokens, one
thread per process. Prints one JSON line; `share` is remote over local, the median over rounds of the ratio within a
round, because absolute times on shared machines do not repeat.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.report import circumstances
from bench.serving import NUM_SERVERS, serving
from bench.workload import random_prompt, saved_model
from transformers.generation.streamers import BaseStreamer

from node import AutoDistributedModelForCausalLM
from node.run.libraries import silence_libraries

PROMPT_TOKENS = 64


class Stopwatch(BaseStreamer):
    """Notes when each step's tokens arrive."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the time; the first call is the prompt itself."""
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more to note."""


def decode_steps_per_s(model: Any, batch: int, new_tokens: int) -> float:
    """Generate greedily and return decode steps per second, prefill left out."""
    ids = random_prompt(PROMPT_TOKENS, vocab_size=model.config.vocab_size, seed=1, batch=batch)
    watch = Stopwatch()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        streamer=watch,
    )
    first, last = watch.times_s[1], watch.times_s[-1]
    return (len(watch.times_s) - 2) / (last - first)


def prefill_tokens_per_s(model: Any, num_tokens: int, seed: int) -> float:
    """Run one prompt and return its tokens per second; ``seed`` makes it one that no server has seen."""
    ids = random_prompt(num_tokens, vocab_size=model.config.vocab_size, seed=seed)
    started_s = time.perf_counter()
    with torch.no_grad():
        model(input_ids=ids, logits_to_keep=1, use_cache=True)
    return num_tokens / (time.perf_counter() - started_s)


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


def measure_all(arguments: argparse.Namespace, local: Any, model_dir: Path, join: str) -> dict[str, dict[str, float]]:
    """Run every workload; a thread of its own, because the client is synchronous."""
    seeds = itertools.count(2)
    new_tokens, prefill_tokens, rounds = arguments.new_tokens, arguments.prefill_tokens, arguments.rounds
    with AutoDistributedModelForCausalLM.from_pretrained(str(model_dir), join=join) as remote:
        return {
            "decode_batch_1": compare(lambda model: decode_steps_per_s(model, 1, new_tokens), local, remote, rounds),
            "decode_batch_8": compare(lambda model: decode_steps_per_s(model, 8, new_tokens), local, remote, rounds),
            f"prefill_{prefill_tokens}": compare(
                lambda model: prefill_tokens_per_s(model, prefill_tokens, next(seeds)), local, remote, rounds
            ),
        }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start the swarm, measure."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed) as model:
        async with serving(model.directory, model.scratch) as swarm:
            workloads = await asyncio.to_thread(measure_all, arguments, model.local, model.directory, swarm.join)
    return {
        **circumstances("decode", arguments.seed),
        "rounds": arguments.rounds,
        "vocab_size": arguments.vocab_size,
        "num_servers": NUM_SERVERS,
        **workloads,
    }


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds after one warm-up (default: 7)")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    sys.exit(main())
