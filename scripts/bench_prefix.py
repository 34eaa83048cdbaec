#!/usr/bin/env python3
"""Measure what sessions that begin with the same tokens cost the servers, beside one prefill of those tokens.

The workload: the model of bench_clients.py on three servers; one client opens 16 sessions with a common prefix of 512
tokens and a continuation of its own in each (or none), all open at the same time. Counted is the processor time of the
three servers' compute threads, hashing and copying included. `shared` is that of the 16 sessions over that of one
prefill of the prefix alone in the same round, `different` the same for 16 sessions without a common prefix;
`shared_whole` takes the whole server processes instead, which also read and write every hidden state. Continuations
cost too: 16 of 16 tokens are half as many tokens as the prefix, so each figure says for which length it is. Sessions
are opened one after the other (`sequential`) and by 16 threads at once (`concurrent`). Prints one JSON line; the exit
code is 1 when any session's next token is not that of local transformers.
"""

import argparse
import asyncio
import contextlib
import copy
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from bench.cpu_time import cpu_seconds
from bench.report import circumstances, spread
from bench.serving import NUM_SERVERS, Serving, compute_seconds, serving
from bench.workload import SavedModel, random_prompt, saved_model

from node import AutoDistributedModelForCausalLM
from node.run.libraries import silence_libraries

Opener: TypeAlias = Callable[[Any, Sequence[torch.Tensor]], list[int]]
"""Opens one session for each prompt, all open together, and returns the next tokens."""


def next_token(model: Any, ids: torch.Tensor, **settings: Any) -> int:
    """Return the likeliest token after ``ids``."""
    with torch.no_grad():
        return int(model(input_ids=ids, logits_to_keep=1, **settings).logits[0, -1].argmax())


def open_sequentially(model: Any, prompts: Sequence[torch.Tensor]) -> list[int]:
    """Open the sessions one after the other; all end at the end."""
    with contextlib.ExitStack() as sessions:
        tokens = []
        for ids in prompts:
            sessions.enter_context(model.inference_session(max_length=ids.shape[1] + 1))
            tokens.append(next_token(model, ids))
        return tokens


def open_concurrently(model: Any, prompts: Sequence[torch.Tensor]) -> list[int]:
    """Open every session in a thread of its own, at the same time; all end when all have their token."""
    together = threading.Barrier(len(prompts))

    def open_one(ids: torch.Tensor) -> int:
        together.wait()
        with model.inference_session(max_length=ids.shape[1] + 1):
            token = next_token(model, ids)
            together.wait()
        return token

    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(open_one, prompts))


OPENERS: dict[str, Opener] = {"sequential": open_sequentially, "concurrent": open_concurrently}


class Prompts:
    """Draws prompts that no session has seen before."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._seeds = itertools.count(1000)

    def draw(self, num_tokens: int) -> torch.Tensor:
        """Draw ``[1, num_tokens]``."""
        return random_prompt(num_tokens, vocab_size=self._arguments.vocab_size, seed=next(self._seeds))

    def with_prefix(self, prefix: torch.Tensor, num_more: int) -> list[torch.Tensor]:
        """Draw a continuation of ``num_more`` tokens for each session."""
        return [torch.cat((prefix, self.draw(num_more)), dim=1) for _ in range(self._arguments.sessions)]

    def different(self, num_more: int) -> list[torch.Tensor]:
        """Draw a prompt of the same length for each session, without a common prefix."""
        return [self.draw(self._arguments.prefix_tokens + num_more) for _ in range(self._arguments.sessions)]


@dataclass(frozen=True)
class Costs:
    """Processor time of the servers' compute threads in one round, s."""

    prefill_s: float
    shared_s: float
    different_s: float
    prefill_whole_s: float
    """Of the whole processes, as the next."""
    shared_whole_s: float
    equal: bool
    """Whether all next tokens were those of local transformers."""


class Bench:
    """One client of one swarm, and the local model beside it."""

    def __init__(
        self, arguments: argparse.Namespace, local: Any, remote: Any, swarm: Serving, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._arguments = arguments
        self._local = local
        self._remote = remote
        self._swarm = swarm
        self._loop = loop
        self._prompts = Prompts(arguments)

    def costs(self, opener: Opener, num_more: int) -> Costs:
        """Measure one round with continuations of ``num_more`` tokens."""
        prefix = self._prompts.draw(self._arguments.prefix_tokens)
        (alone_s, alone_whole_s), _ = self._cost(open_sequentially, [self._prompts.draw(self._arguments.prefix_tokens)])
        shared = self._prompts.with_prefix(prefix, num_more)
        (shared_s, shared_whole_s), tokens = self._cost(opener, shared)
        (different_s, _), _ = self._cost(opener, self._prompts.different(num_more))
        equal = tokens == list(self._expected(prefix, shared))
        return Costs(alone_s, shared_s, different_s, alone_whole_s, shared_whole_s, equal)

    def _cost(self, opener: Opener, prompts: Sequence[torch.Tensor]) -> tuple[tuple[float, float], list[int]]:
        """Return the processor time of compute threads and of whole processes, and the next tokens."""
        before_s, before_whole_s = self._clocks()
        tokens = opener(self._remote, prompts)
        after_s, after_whole_s = self._clocks()
        return (after_s - before_s, after_whole_s - before_whole_s), tokens

    def _clocks(self) -> tuple[float, float]:
        asked = asyncio.run_coroutine_threadsafe(compute_seconds(self._swarm.servers), self._loop)
        return asked.result(), cpu_seconds([server.pid for server in self._swarm.servers])

    def _expected(self, prefix: torch.Tensor, prompts: Sequence[torch.Tensor]) -> Iterator[int]:
        with torch.no_grad():
            begun = self._local(input_ids=prefix, use_cache=True, logits_to_keep=1)
        cache = begun.past_key_values
        for ids in prompts:
            if ids.shape == prefix.shape:
                yield int(begun.logits[0, -1].argmax())
                continue
            yield next_token(self._local, ids[:, prefix.shape[1] :], past_key_values=copy.deepcopy(cache))


def measure_all(
    arguments: argparse.Namespace, model: SavedModel, swarm: Serving, loop: asyncio.AbstractEventLoop
) -> list[dict[str, Any]]:
    """Measure every way to open and every length in turn, round by round; the first round is left out."""
    ways = list(itertools.product(OPENERS, arguments.continuations))
    with AutoDistributedModelForCausalLM.from_pretrained(str(model.directory), join=swarm.join) as remote:
        bench = Bench(arguments, model.local, remote, swarm, loop)
        rounds = [
            [bench.costs(OPENERS[opened], num_more) for opened, num_more in ways] for _ in range(1 + arguments.rounds)
        ]
    return [
        {"opened": opened, "continuation_tokens": num_more, **figures(costs)}
        for (opened, num_more), costs in zip(ways, zip(*rounds[1:], strict=True), strict=True)
    ]


def figures(rounds: Sequence[Costs]) -> dict[str, Any]:
    """Put the rounds of one way to open into the figures of the JSON line."""
    return {
        **spread("prefill_ms", [1000 * costs.prefill_s for costs in rounds], 1),
        **spread("shared", [costs.shared_s / costs.prefill_s for costs in rounds], 2),
        **spread("shared_whole", [costs.shared_whole_s / costs.prefill_whole_s for costs in rounds], 2),
        **spread("different", [costs.different_s / costs.prefill_s for costs in rounds], 2),
        "tokens_equal": all(costs.equal for costs in rounds),
    }


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, start the swarm, measure."""
    torch.set_num_threads(1)
    silence_libraries()
    with saved_model(vocab_size=arguments.vocab_size, seed=arguments.seed) as model:
        async with serving(model.directory, model.scratch) as swarm:
            by_way = await asyncio.to_thread(measure_all, arguments, model, swarm, asyncio.get_running_loop())
    return {
        **circumstances("prefix", arguments.seed),
        "rounds": arguments.rounds,
        "vocab_size": arguments.vocab_size,
        "num_servers": NUM_SERVERS,
        "sessions": arguments.sessions,
        "prefix_tokens": arguments.prefix_tokens,
        "by_way": by_way,
    }


def main() -> int:
    """Parse the command line, run, print; return 1 when any tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: 5)")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--prefix-tokens", type=int, default=512)
    parser.add_argument("--continuations", type=int, nargs="+", default=[0, 16], help="lengths, tokens (default: 0 16)")
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    line = asyncio.run(run(parser.parse_args()))
    print(json.dumps(line))
    return 0 if all(figures["tokens_equal"] for figures in line["by_way"]) else 1


if __name__ == "__main__":
    sys.exit(main())
