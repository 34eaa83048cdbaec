#!/usr/bin/env python3
"""Measure what audits by reveal cost the answer beside which they run: decoding with them over decoding without.

The workload: the model of bench_clients.py on one swarm of three servers, and a client process for each rate. In every
round each of them decodes alone, in an order that changes from round to round. Audits go on for some time after a
session and are waited for, so that they are beside nobody else's. Nothing is run again: a judge's work is its own
affair, and depends on whose machine does it. ``ratio`` is tokens per second at a rate over those at rate 0, by round.
Prints one JSON line; the exit code is 1 when any tokens are not those of local transformers, or the median ratio at the
swarm's default rate of 0.02 is below MIN_RATIO.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from bench.clients import started_clients
from bench.jobs import Decode, Decoded
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, Serving, serving
from bench.windows import Window, decode_alone, decode_together, tokens_per_s
from bench.workload import SavedModel, random_prompt, saved_model

from node.run.libraries import silence_libraries

MIN_RATIO = 0.97
DEFAULT_RATE = 0.02
RATES = (0.0, DEFAULT_RATE, 1.0)
PAUSE_S = 1.0
"""Audits of a session that has ended are waited for so long before the next one."""


def measure_all(
    arguments: argparse.Namespace, model: SavedModel, swarm: Serving, job: Decode, expected: Decoded
) -> dict[float, list[Window]]:
    """Return one window for each rate and round; the first round is left out."""
    windows: dict[float, list[Window]] = {rate: [] for rate in RATES}
    with contextlib.ExitStack() as exits:
        clients = {
            rate: exits.enter_context(
                started_clients(1, model.directory, swarm.join, model.scratch / f"clients-{rate}", audit_rate=rate)
            )
            for rate in RATES
        }
        for number in range(1 + arguments.rounds):
            for rate in RATES if number % 2 else reversed(RATES):
                window = decode_together(clients[rate], swarm, [expected], [job])
                time.sleep(PAUSE_S)
                if number:
                    windows[rate].append(window)
    return windows


def summary(rate: float, windows: dict[float, list[Window]]) -> dict[str, Any]:
    """Put the rounds of one rate into the figures of the JSON line."""
    pairs = list(zip(windows[rate], windows[0.0], strict=True))
    return {
        "rate": rate,
        **spread("ratio", [tokens_per_s([audited]) / tokens_per_s([plain]) for audited, plain in pairs]),
        "ratio_of_all": round(tokens_per_s(windows[rate]) / tokens_per_s(windows[0.0]), 3),
        **spread("tokens_per_s", [tokens_per_s([window]) for window in windows[rate]], 1),
        "tokens_equal": all(window.equal for window in windows[rate]),
    }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start swarm and clients, measure."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed) as model:
        prompt = random_prompt(arguments.prompt_tokens, vocab_size=arguments.vocab_size, seed=1000)
        job = Decode(prompt[0].tolist(), arguments.new_tokens)
        expected = decode_alone(model.local, job)
        async with serving(model.directory, model.scratch / "swarm") as swarm:
            windows = await asyncio.to_thread(measure_all, arguments, model, swarm, job, expected)
    return {
        **circumstances("audits", arguments.seed),
        "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "num_servers": NUM_SERVERS,
        "by_rate": [summary(rate, windows) for rate in RATES],
    }


def is_good(by_rate: Sequence[dict[str, Any]]) -> bool:
    """Say whether tokens are right and the default rate costs no more than it may."""
    (default,) = (figures for figures in by_rate if figures["rate"] == DEFAULT_RATE)
    return all(figures["tokens_equal"] for figures in by_rate) and default["ratio"] >= MIN_RATIO


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds after one warm-up (default: 9)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=320, help="in a round (default: 320)")
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    line = asyncio.run(run(parser.parse_args()))
    print(json.dumps(line))
    return 0 if is_good(line["by_rate"]) else 1


if __name__ == "__main__":
    sys.exit(main())
