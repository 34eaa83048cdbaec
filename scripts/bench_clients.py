#!/usr/bin/env python3
"""Measure how much many clients at once get from three servers, beside one client on the same servers in the same run.

The workload: a Llama-shaped random model (8 layers, hidden 512, vocabulary 1,000, fp32), 1, 4, 8 and 16 clients, each a
process of its own with a prompt of its own (64 tokens), 64 new tokens, greedy, one thread per process. All clients
wait for each other after their first token; what is counted is from there until the first of them has finished, so
all are decoding. `ratio` is the tokens per second of all clients over those of one client in the same round;
`whole_...` is the same with opening, prefill (of prompts that servers may know from the warm-up) and the slowest one's
rest. `slowest_share` is the slowest client's tokens over the fastest one's. Prints one JSON line; the exit code is 1
when any client's tokens are not those of local transformers.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench.clients import started_clients
from bench.jobs import Decode, Decoded
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, Serving, serving
from bench.windows import Window, cpu_ms_per_token, decode_alone, decode_together, tokens_per_s
from bench.workload import random_prompt, saved_model

from node.run.libraries import silence_libraries


def whole_tokens_per_s(windows: Sequence[Window]) -> float:
    """Return the rate of all clients with opening, prefill and the slowest one's rest."""
    return sum(window.whole_tokens for window in windows) / sum(window.whole_s for window in windows)


def slowest_share(windows: Sequence[Window]) -> float:
    """Return what the slowest client got over what the fastest got."""
    by_client = [sum(of_client) for of_client in zip(*(window.num_tokens for window in windows), strict=True)]
    return min(by_client) / max(by_client)


def cores_of_others(windows: Sequence[Window]) -> float:
    """Return how many cores other work on this machine took meanwhile."""
    whole_s = sum(window.after.machine_s - window.before.machine_s for window in windows)
    ours_s = sum(sum(window.after.cpu_s.values()) - sum(window.before.cpu_s.values()) for window in windows)
    return (whole_s - ours_s) / sum(window.elapsed_s for window in windows)


def summary(rounds: Sequence[Sequence[Window]], alone: Sequence[Sequence[Window]]) -> dict[str, Any]:
    """Put the rounds of one number of clients into the figures of the JSON line.

    Args:
        rounds: by round, the windows with this number of clients.
        alone: by round, those with one client.
    """

    def ratios(rate: Callable[[Sequence[Window]], float]) -> list[float]:
        return [rate(windows) / rate(reference) for windows, reference in zip(rounds, alone, strict=True)]

    every = [window for windows in rounds for window in windows]
    return {
        "clients": len(every[0].num_tokens),
        **spread("tokens_per_s", [tokens_per_s(windows) for windows in rounds], 1),
        **spread("ratio", ratios(tokens_per_s)),
        **spread("whole_tokens_per_s", [whole_tokens_per_s(windows) for windows in rounds], 1),
        **spread("whole_ratio", ratios(whole_tokens_per_s)),
        **spread("slowest_share", [slowest_share(windows) for windows in rounds]),
        "cpu_ms_per_token": cpu_ms_per_token(every),
        "cores_of_others": round(cores_of_others(every), 2),
        "tokens_equal": all(window.equal for window in every),
    }  # fmt: skip


def measure_all(
    arguments: argparse.Namespace,
    swarm: Serving,
    directory: Path,
    homes: Path,
    jobs: list[Decode],
    expected: list[Decoded],
) -> list[list[list[Window]]]:
    """Return, by number of clients and by round, what was counted; the first round warms up and is left out."""
    with started_clients(max(arguments.clients), directory, swarm.join, homes) as clients:
        rounds = [
            [
                [decode_together(clients[:num], swarm, expected, jobs) for _ in range(arguments.generations)]
                for num in arguments.clients
            ]
            for _ in range(1 + arguments.rounds)
        ]
    return [list(of_number) for of_number in zip(*rounds[1:], strict=True)]


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start swarm and clients, measure."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed) as model:
        prompts = [
            random_prompt(arguments.prompt_tokens, vocab_size=arguments.vocab_size, seed=1000 + number)
            for number in range(max(arguments.clients))
        ]
        jobs = [Decode(prompt[0].tolist(), arguments.new_tokens) for prompt in prompts]
        expected = [decode_alone(model.local, job) for job in jobs]
        async with serving(model.directory, model.scratch) as swarm:
            measured = await asyncio.to_thread(
                measure_all, arguments, swarm, model.directory, model.scratch, jobs, expected
            )
    local_per_s = statistics.median((len(one.times_s) - 1) / (one.times_s[-1] - one.times_s[0]) for one in expected)
    return {
        **circumstances("clients", arguments.seed),
        "rounds": arguments.rounds,
        "generations": arguments.generations,
        "vocab_size": arguments.vocab_size,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "num_servers": NUM_SERVERS,
        "local_tokens_per_s": round(local_per_s, 1),
        "by_clients": [summary(rounds, measured[0]) for rounds in measured],
    }


def main() -> int:
    """Parse the command line, run, print; return 1 when any tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="numbers; the first is the reference (default: 1 4 8 16)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: 5)")
    parser.add_argument("--generations", type=int, default=2, help="of every client in a round (default: 2)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    line = asyncio.run(run(parser.parse_args()))
    print(json.dumps(line))
    return 0 if all(figures["tokens_equal"] for figures in line["by_clients"]) else 1


if __name__ == "__main__":
    sys.exit(main())
