#!/usr/bin/env python3
"""Measure what a long prefill does to the steps of clients that are decoding on the same three servers.

The workload: the model of bench_clients.py with room for 4,096 positions; eight clients decode, each a process of its
own; another client sends a prompt of 2,000 tokens among them. A step is the time between two tokens of one client.
`p99` and `max` are those of the steps that overlap the prefill, in normal steps: the median of the same round before
the prefill. `quiet_...` are the same of the steps before it: what the machine itself does. `prefill_slowdown` is how
long the prefill took over how long it takes alone. Prints one JSON line; the exit code is 1 when any tokens are not
those of local transformers.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench.clients import Client, gather_at_gate, started_clients
from bench.jobs import Decode, Decoded, Prefill, Prefilled
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, serving
from bench.workload import SavedModel, random_prompt, saved_model

from node.run.libraries import silence_libraries

MAX_POSITIONS = 4096
MAX_NEW_TOKENS = 2000
"""Tokens of a decoder at most; it is stopped long before."""
NUM_FIRST_STEPS = 3
"""Steps of a decoder that are not counted: it has just been let go."""
FIRST_PREFILL_SEED = 1000


@dataclass(frozen=True)
class Round:
    """Eight clients' tokens, and a prefill among them."""

    decoded: list[Decoded]
    alone: Prefilled
    among: Prefilled

    def steps_s(self, *, quiet: bool) -> list[float]:
        """Return how long the decoders' steps took: before the prefill, or those that overlap it."""
        first_s, last_s = self.among.started_s, self.among.ended_s
        steps = [step for client in self.decoded for step in itertools.pairwise(client.times_s[1 + NUM_FIRST_STEPS :])]
        return [
            ended_s - began_s
            for began_s, ended_s in steps
            if (ended_s <= first_s if quiet else began_s < last_s and ended_s > first_s)
        ]

    @property
    def normal_s(self) -> float:
        """A normal step of this round."""
        return statistics.median(self.steps_s(quiet=True))

    def p99(self, *, quiet: bool) -> float:
        """Return the step that one in a hundred exceeds, in normal steps."""
        return statistics.quantiles(self.steps_s(quiet=quiet), n=100, method="inclusive")[98] / self.normal_s

    def longest(self, *, quiet: bool) -> float:
        """Return the longest step, in normal steps."""
        return max(self.steps_s(quiet=quiet)) / self.normal_s


class LongPrompts:
    """Draws prompts for prefills, each once: what a server has seen before it might not compute again."""

    def __init__(self, num_tokens: int, vocab_size: int) -> None:
        self.drawn: list[Prefill] = []
        self._num_tokens = num_tokens
        self._vocab_size = vocab_size

    def draw(self) -> Prefill:
        """Return the next one."""
        seed = FIRST_PREFILL_SEED + len(self.drawn)
        ids = random_prompt(self._num_tokens, vocab_size=self._vocab_size, seed=seed)
        self.drawn.append(Prefill(ids[0].tolist()))
        return self.drawn[-1]


def prefill_among(
    decoders: Sequence[Client], reader: Client, jobs: Sequence[Decode], long_prompts: LongPrompts, settle_s: float
) -> Round:
    """Let ``decoders`` decode, ``reader`` prefill in the midst of it, and stop them all."""
    reader.ask(long_prompts.draw())
    alone = reader.answer()
    for client, job in zip(decoders, jobs, strict=True):
        client.ask(job)
    gather_at_gate(decoders)
    for client in decoders:
        client.proceed()
    time.sleep(settle_s)
    reader.ask(long_prompts.draw())
    among = reader.answer()
    for client in decoders:
        client.proceed()
    decoded: list[Decoded] = [client.answer() for client in decoders]
    if any(len(client.tokens) == MAX_NEW_TOKENS for client in decoded):
        raise RuntimeError("A decoder ended before the prefill did; give a shorter --settle-s.")
    return Round(decoded, alone, among)


def measure_all(
    arguments: argparse.Namespace, model: SavedModel, join: str, prompts: torch.Tensor, long_prompts: LongPrompts
) -> list[Round]:
    """Return all rounds; the first one warms up."""
    jobs = [Decode(prompt, MAX_NEW_TOKENS, stops_early=True) for prompt in prompts.tolist()]
    with started_clients(len(jobs) + 1, model.directory, join, model.scratch) as (reader, *decoders):
        return [
            prefill_among(decoders, reader, jobs, long_prompts, arguments.settle_s) for _ in range(1 + arguments.rounds)
        ]


def all_equal(model: Any, rounds: Sequence[Round], prompts: torch.Tensor, long_prompts: LongPrompts) -> bool:
    """Say whether every token of every round is that of local transformers."""
    longest = max(len(client.tokens) for of_round in rounds for client in of_round.decoded)
    expected = [
        model.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=longest,
            min_new_tokens=longest,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    decoded = all(
        client.tokens == known[: len(client.tokens)]
        for of_round in rounds
        for client, known in zip(of_round.decoded, expected, strict=True)
    )
    read = [prefilled.token for of_round in rounds for prefilled in (of_round.alone, of_round.among)]
    return decoded and read == [prefill.run_on(model).token for prefill in long_prompts.drawn]


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start swarm and clients, measure, compare."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed, max_positions=MAX_POSITIONS) as model:
        prompts = random_prompt(
            arguments.prompt_tokens, vocab_size=arguments.vocab_size, seed=1, batch=arguments.decoders
        )
        long_prompts = LongPrompts(arguments.prefill_tokens, arguments.vocab_size)
        async with serving(model.directory, model.scratch) as swarm:
            rounds = await asyncio.to_thread(measure_all, arguments, model, swarm.join, prompts, long_prompts)
        equal = all_equal(model.local, rounds, prompts, long_prompts)
    return {
        **circumstances("interleave", arguments.seed),
        "rounds": arguments.rounds,
        "vocab_size": arguments.vocab_size,
        "num_servers": NUM_SERVERS,
        "decoders": arguments.decoders,
        "prompt_tokens": arguments.prompt_tokens,
        "prefill_tokens": arguments.prefill_tokens,
        **figures(rounds[1:]),
        "tokens_equal": equal,
    }


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Put the rounds into the figures of the JSON line."""
    return {
        **spread("normal_step_ms", [1000 * one.normal_s for one in rounds], 2),
        **spread("p99", [one.p99(quiet=False) for one in rounds], 2),
        **spread("max", [one.longest(quiet=False) for one in rounds], 2),
        **spread("quiet_p99", [one.p99(quiet=True) for one in rounds], 2),
        **spread("quiet_max", [one.longest(quiet=True) for one in rounds], 2),
        "steps_during": sum(len(one.steps_s(quiet=False)) for one in rounds),
        **spread("prefill_alone_s", [one.alone.elapsed_s for one in rounds]),
        **spread("prefill_slowdown", [one.among.elapsed_s / one.alone.elapsed_s for one in rounds], 2),
    }  # fmt: skip


def main() -> int:
    """Parse the command line, run, print; return 1 when any tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: 5)")
    parser.add_argument("--decoders", type=int, default=8, help="clients that decode (default: 8)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="of each of them (default: 64)")
    parser.add_argument("--prefill-tokens", type=int, default=2000, help="of the client among them (default: 2000)")
    parser.add_argument("--settle-s", type=float, default=3.0, help="decoding before the prefill, s (default: 3)")
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    line = asyncio.run(run(parser.parse_args()))
    print(json.dumps(line))
    return 0 if line["tokens_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
