#!/usr/bin/env python3
"""Measure what receipts cost a session: decoding with them over decoding without, in one run on one machine.

The workload: the model of bench_clients.py on two swarms of three servers each, of which one signs and counts and the
other does not (``--no-receipts``); each has clients of its own, processes that keep identity and ledger on disk. In
every round each number of clients decodes in both, in an order that changes from round to round. What is counted is
the time in which all of them decode. ``ratio`` is tokens per second with receipts over those without, by round;
``cpu_ratio`` is the processor time of a token with receipts over that without, of all rounds. Prints one JSON line; the
exit code is 1 when any tokens are not those of local transformers, or the median ratio is below MIN_RATIO.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from bench.clients import Client, started_clients
from bench.jobs import Decode, Decoded
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, Serving, serving
from bench.windows import Window, cpu_ms_per_token, decode_alone, decode_together, tokens_per_s
from bench.workload import SavedModel, random_prompt, saved_model

from node.run.libraries import silence_libraries

MIN_RATIO = 0.98
KINDS = (False, True)
"""Without receipts, and with them."""


def measure_all(
    arguments: argparse.Namespace,
    model: SavedModel,
    swarms: dict[bool, Serving],
    jobs: list[Decode],
    expected: list[Decoded],
) -> dict[int, dict[bool, list[Window]]]:
    """Return, by number of clients and whether they sign, one window for each round; the first round is left out."""
    most = max(arguments.clients)
    windows: dict[int, dict[bool, list[Window]]] = {num: {kind: [] for kind in KINDS} for num in arguments.clients}
    with contextlib.ExitStack() as exits:
        clients: dict[bool, list[Client]] = {}
        for kind, swarm in swarms.items():
            homes = model.scratch / f"clients-{kind}"
            clients[kind] = exits.enter_context(
                started_clients(most, model.directory, swarm.join, homes, receipts=kind)
            )
        for number in range(1 + arguments.rounds):
            for num in arguments.clients:
                for kind in KINDS if number % 2 else reversed(KINDS):
                    window = decode_together(clients[kind][:num], swarms[kind], expected, jobs)
                    if number:
                        windows[num][kind].append(window)
    return windows


def summary(num: int, windows: dict[bool, list[Window]]) -> dict[str, Any]:
    """Put the rounds of one number of clients into the figures of the JSON line."""
    pairs = list(zip(windows[True], windows[False], strict=True))
    cpu = {kind: sum(cpu_ms_per_token(windows[kind]).values()) for kind in KINDS}
    return {
        "clients": num,
        **spread("ratio", [tokens_per_s([signed]) / tokens_per_s([plain]) for signed, plain in pairs]),
        "ratio_of_all": round(tokens_per_s(windows[True]) / tokens_per_s(windows[False]), 3),
        **spread("tokens_per_s", [tokens_per_s([window]) for window in windows[True]], 1),
        "cpu_ratio": round(cpu[True] / cpu[False], 3),
        "cpu_ms_per_token": cpu_ms_per_token(windows[True]),
        "cpu_ms_per_token_without": cpu_ms_per_token(windows[False]),
        "tokens_equal": all(window.equal for kind in KINDS for window in windows[kind]),
    }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start swarms and clients, measure."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed) as model:
        prompts = [
            random_prompt(arguments.prompt_tokens, vocab_size=arguments.vocab_size, seed=1000 + number)
            for number in range(max(arguments.clients))
        ]
        jobs = [Decode(prompt[0].tolist(), arguments.new_tokens) for prompt in prompts]
        expected = [decode_alone(model.local, job) for job in jobs]
        async with (
            serving(model.directory, model.scratch / "plain", ["--no-receipts"]) as plain,
            serving(model.directory, model.scratch / "signed") as signed,
        ):
            windows = await asyncio.to_thread(
                measure_all, arguments, model, {False: plain, True: signed}, jobs, expected
            )
    return {
        **circumstances("signing", arguments.seed),
        "rounds": arguments.rounds,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "num_servers": NUM_SERVERS,
        "by_clients": [summary(num, windows[num]) for num in arguments.clients],
    }


def is_good(by_clients: Sequence[dict[str, Any]]) -> bool:
    """Say whether tokens are right and receipts cost no more than they may."""
    return all(figures["tokens_equal"] and figures["ratio"] >= MIN_RATIO for figures in by_clients)


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="numbers (default: 1 8)")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds after one warm-up (default: 9)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=320, help="of every client in a round (default: 320)")
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    line = asyncio.run(run(parser.parse_args()))
    print(json.dumps(line))
    return 0 if is_good(line["by_clients"]) else 1


if __name__ == "__main__":
    sys.exit(main())
