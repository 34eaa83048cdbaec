#!/usr/bin/env python3
"""Compare what `efedllm doctor` expects of a span on this machine with what a server then measures of it.

The embedded model and small Llama-shaped random ones, every block in one span, weights held in each of the ways that
`serve` knows. A round measures the machine as doctor does, then the span as `serve` does at start-up (several times,
of which, as of the machine, a quarter are better). `ratio` is tokens per second expected over tokens per second
measured: 1 is right, above 1 promises too much. Medians over rounds. Prints one JSON line.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bench.report import circumstances, spread
from transformers import AutoModelForCausalLM, LlamaConfig

from node.model.checkpoint import Checkpoint
from node.model.span import Span, build_quantised_span, build_span
from node.run.join_forecast import block_work
from node.run.libraries import silence_libraries
from node.run.machine import Probe, measure_machine, undisturbed
from node.run.serve_plan import Wanted, Weights, weigh
from node.serve.forecast import span_rate, step_cost
from node.serve.measure import measure

CPU = torch.device("cpu")
SHAPES = {"4 blocks x 256": (4, 256, 704), "8 blocks x 512": (8, 512, 1408), "2 blocks x 2048": (2, 2048, 5632)}
"""Blocks, hidden size, intermediate size."""
WAYS = {
    "float32": Wanted(device="cpu", dtype="float32"),
    "bfloat16": Wanted(device="cpu", dtype="bfloat16"),
    "int8": Wanted(device="cpu", dtype="float32", quantize="int8"),
    "int4": Wanted(device="cpu", quantize="int4"),
}
TRUTHS = 8
"""Times that a span is measured in a round."""


def checkpoints(shapes: dict[str, tuple[int, int, int]]) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the embedded model, and a random one of every shape."""
    yield "embedded", Checkpoint.open("embedded")
    for title, (num_blocks, hidden_size, intermediate_size) in shapes.items():
        config = LlamaConfig(
            vocab_size=64, hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=num_blocks,
            num_attention_heads=hidden_size // 64, num_key_value_heads=hidden_size // 128,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="efedllm-bench-") as directory:
            AutoModelForCausalLM.from_config(config).save_pretrained(directory)
            yield title, Checkpoint.open(directory)


def expect(checkpoint: Checkpoint, weights: Weights) -> float:
    """Return the tokens per second that doctor expects of all blocks."""
    work = block_work(checkpoint, weights.block_bytes)
    width, held = checkpoint.config.hidden_size, sum(block.read_bytes for block in work)
    machine = measure_machine(Probe(weights.device, weights.dtype, weights.scheme, width, held))
    return span_rate(step_cost(machine, work)).tokens_per_s


def build(checkpoint: Checkpoint, weights: Weights) -> Span:
    """Return all blocks as a server holds them."""
    end, config, dtype = checkpoint.num_blocks, checkpoint.config, weights.dtype
    if weights.scheme is None:
        return build_span(config, checkpoint.load_span(0, end, dtype=dtype), 0, end, dtype=dtype, device=CPU)
    return build_quantised_span(
        config, lambda block: checkpoint.load_span(block, block + 1, dtype=dtype), 0, end,
        scheme=weights.scheme, dtype=dtype, device=CPU,
    )  # fmt: skip


def truth(span: Span, hidden_size: int) -> float:
    """Return the tokens per second that a server measures."""
    blocks = span.end - span.start
    return 1 / undisturbed([blocks / measure(span, hidden_size).blocks_per_s for _ in range(TRUTHS)])


def compare(checkpoint: Checkpoint, way: Wanted, rounds: int) -> dict[str, Any]:
    """Return what was expected beside what was measured, in turn."""
    weights = weigh(way, checkpoint, CPU)
    span, width = build(checkpoint, weights), checkpoint.config.hidden_size
    pairs = [(expect(checkpoint, weights), truth(span, width)) for _ in range(rounds)]
    return {
        **spread("expected", [expected for expected, _ in pairs], 1),
        **spread("measured", [measured for _, measured in pairs], 1),
        **spread("ratio", [expected / measured for expected, measured in pairs]),
    }


def measure_all(ways: Sequence[str], shapes: dict[str, tuple[int, int, int]], rounds: int) -> dict[str, Any]:
    """Return every model in every way."""
    return {
        title: {way: compare(checkpoint, WAYS[way], rounds) for way in ways}
        for title, checkpoint in checkpoints(shapes)
    }


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], help="how weights are held")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    silence_libraries()
    models = measure_all(arguments.ways, SHAPES, arguments.rounds)
    print(json.dumps({**circumstances("forecast", arguments.seed), "rounds": arguments.rounds, "models": models}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
