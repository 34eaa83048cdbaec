"""A swarm on loopback in which each node is a process of its own: a bootstrap and three servers, one thread each.

Runs in the caller's event loop; computes nothing.
"""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.workload import NUM_LAYERS
from node.run.children import Child, ChildFailed

NUM_SERVERS = 3
START_TIMEOUT_S = 120.0
_SILENCE_S = 0.05
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Serving(NamedTuple):
    """A swarm that serves all blocks of one model."""

    join: str
    servers: list[Child]
    """In the order of their blocks."""


async def compute_seconds(servers: Sequence[Child]) -> float:
    """Return the processor time that the compute threads of ``servers`` have taken together, as they tell it."""
    total_s = 0.0
    for server in servers:
        with contextlib.suppress(ChildFailed):  # What it has said by itself, once a minute, is old.
            while await server.next_event(_SILENCE_S) is not None:
                pass
        os.kill(server.pid, signal.SIGUSR1)
        while (event := await server.next_event(START_TIMEOUT_S)) is not None:
            if event["event"] == "stats":
                total_s += event["compute_cpu_s"]
                break
    return total_s


@contextlib.asynccontextmanager
async def serving(model_dir: Path, homes: Path, more_arguments: Sequence[str] = ()) -> AsyncIterator[Serving]:
    """Start a bootstrap and three servers of equal shares of the model; all end with the context.

    Args:
        model_dir: where the model is saved.
        homes: where every node gets a state directory of its own.
        more_arguments: further arguments of ``efedllm serve``.
    """
    async with contextlib.AsyncExitStack() as exits:
        bootstrap = await exits.enter_async_context(
            Child(["bootstrap", "--private", "--exit-with-stdin"], homes / "bootstrap", extra_environment=_ONE_THREAD)
        )
        join = (await bootstrap.ready(START_TIMEOUT_S))["join"]
        cuts = [NUM_LAYERS * part // NUM_SERVERS for part in range(NUM_SERVERS + 1)]
        servers = []
        for start, end in itertools.pairwise(cuts):
            arguments = ["serve", str(model_dir), "--join", join, "--blocks", f"{start}:{end}", "--device", "cpu"]
            arguments += ["--num-threads", "1", "--exit-with-stdin", *more_arguments]
            child = Child(arguments, homes / f"server{start}", extra_environment=_ONE_THREAD)
            servers.append(await exits.enter_async_context(child))
        await asyncio.gather(*(server.ready(START_TIMEOUT_S) for server in servers))
        yield Serving(join, servers)
