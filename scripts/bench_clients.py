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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.clients import Client, gather_at_gate, started_clients, wait_for_first
from bench.cpu_time import cpu_seconds, daemon_of, machine_seconds
from bench.jobs import Decode, Decoded
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, Serving, serving
from bench.workload import random_prompt, saved_model

from node.run.libraries import silence_libraries


@dataclass(frozen=True)
class Reading:
    """Clocks at one moment, s."""

    now_s: float
    cpu_s: dict[str, float]
    """Processor time by kind of process."""
    machine_s: float
    """Processor time of everything on this machine."""


@dataclass(frozen=True)
class Window:
    """One time in which all clients decoded, from one reading of the clocks to the next."""

    before: Reading
    after: Reading
    num_tokens: list[int]
    """New tokens by client."""
    whole_s: float
    """From asking the clients until the last one had its last token."""
    whole_tokens: int
    equal: bool
    """Whether every client's tokens were the expected ones."""

    @property
    def elapsed_s(self) -> float:
        """Length of the window."""
        return self.after.now_s - self.before.now_s


def read_clocks(pids: dict[str, list[int]]) -> Reading:
    """Read the wall clock and the processor time of each kind of process."""
    cpu_s = {kind: cpu_seconds(of_kind) for kind, of_kind in pids.items()}
    return Reading(time.monotonic(), cpu_s, machine_seconds()[0])


def pids_by_kind(clients: Sequence[Client], swarm: Serving) -> dict[str, list[int]]:
    """List the processes that have to do with the work of ``clients``."""
    servers = [server.pid for server in swarm.servers]
    return {
        "clients": [client.pid for client in clients],
        "client_p2pd": [daemon_of(client.pid) for client in clients],
        "servers": servers,
        "server_p2pd": [daemon_of(pid) for pid in servers],
    }


def decode_together(
    clients: Sequence[Client], swarm: Serving, expected: Sequence[Decoded], jobs: list[Decode]
) -> Window:
    """Let every client generate once and count while all of them decode."""
    pids = pids_by_kind(clients, swarm)
    asked_s = time.monotonic()
    for client, job in zip(clients, jobs, strict=False):
        client.ask(job)
    gather_at_gate(clients)
    before = read_clocks(pids)
    for client in clients:
        client.proceed()
    wait_for_first(clients)
    after = read_clocks(pids)
    outcomes: list[Decoded] = [client.answer() for client in clients]
    return Window(
        before,
        after,
        [sum(before.now_s < at_s <= after.now_s for at_s in outcome.times_s) for outcome in outcomes],
        max(outcome.times_s[-1] for outcome in outcomes) - asked_s,
        sum(len(outcome.tokens) for outcome in outcomes),
        all(outcome.tokens == known.tokens for outcome, known in zip(outcomes, expected, strict=False)),
    )


def tokens_per_s(windows: Sequence[Window]) -> float:
    """Return the rate of all clients while all of them decoded."""
    return sum(sum(window.num_tokens) for window in windows) / sum(window.elapsed_s for window in windows)


def whole_tokens_per_s(windows: Sequence[Window]) -> float:
    """Return the rate of all clients with opening, prefill and the slowest one's rest."""
    return sum(window.whole_tokens for window in windows) / sum(window.whole_s for window in windows)


def slowest_share(windows: Sequence[Window]) -> float:
    """Return what the slowest client got over what the fastest got."""
    by_client = [sum(of_client) for of_client in zip(*(window.num_tokens for window in windows), strict=True)]
    return min(by_client) / max(by_client)


def cpu_ms_per_token(windows: Sequence[Window]) -> dict[str, float]:
    """Return the processor time that a token took, by kind of process, ms."""
    num_tokens = sum(sum(window.num_tokens) for window in windows)
    kinds = windows[0].before.cpu_s
    spent_s = {kind: sum(window.after.cpu_s[kind] - window.before.cpu_s[kind] for window in windows) for kind in kinds}
    return {kind: round(1000 * seconds / num_tokens, 2) for kind, seconds in spent_s.items()}


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


def decode_alone(local: Any, job: Decode) -> Decoded:
    """Let transformers generate what a client is expected to."""
    return job.run(local, _OpenGate())


class _OpenGate:
    """Stands where a client's pipe does when nobody has to be waited for."""

    def send(self, message: str) -> None:
        """Tell nobody."""

    def recv(self) -> None:
        """Go on at once."""


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
