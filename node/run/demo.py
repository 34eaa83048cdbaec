"""``efedllm demo``: a private swarm on this machine, one process per role, and text from the bundled model.

bootstrap, three servers, then a client: five processes of our own commands, each with a state directory of its own
that goes with the demo.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dht.receipts.ledger import Ledger
from node.config import LEDGER
from node.errors import UnavailableError
from node.model.checkpoint import EMBEDDED, Checkpoint
from node.model.devices import free_bytes
from node.run.children import Child, ChildFailed, Children
from node.run.events import Reporter
from node.run.lifetime import until_told_to_stop
from node.run.receipt_forms import sums_in_lines, sums_of_pairs
from node.run.receipts import ReceiptsOptions, wanted

NUM_SERVERS = 3
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class DemoOptions:
    """What ``efedllm demo`` was asked for."""

    prompt: str
    max_new_tokens: int
    seed: int


class Interrupted(Exception):
    """The user ended the demo."""


async def run_demo(options: DemoOptions, reporter: Reporter) -> None:
    """Run the demo to its end.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; every child has been ended.
    """
    demo = asyncio.create_task(_demo(options, reporter))
    told = asyncio.create_task(until_told_to_stop(exit_with_stdin=False))
    try:
        await asyncio.wait([demo, told], return_when=asyncio.FIRST_COMPLETED)
        if not demo.done():
            raise Interrupted
        demo.result()
    finally:
        for task in (demo, told):
            task.cancel()
        await asyncio.gather(demo, told, return_exceptions=True)


async def _demo(options: DemoOptions, reporter: Reporter) -> None:
    started_s = time.monotonic()
    num_blocks = Checkpoint.open(EMBEDDED).num_blocks
    share_bytes = free_bytes(torch.device("cpu")) // NUM_SERVERS  # each would promise all of it
    cuts = [num_blocks * part // NUM_SERVERS for part in range(NUM_SERVERS + 1)]
    with tempfile.TemporaryDirectory(prefix="efedllm-demo-") as directory:
        homes = Path(directory)
        reporter.say(f"Starting a private swarm on this machine: a bootstrap and {NUM_SERVERS} servers ...")
        first = Child(["bootstrap", "--private", "--exit-with-stdin"], homes / "bootstrap")
        async with first as bootstrap, Children() as nodes:
            join = (await bootstrap.ready(_START_TIMEOUT_S))["join"]
            servers = [
                await nodes.start(_serve_arguments(join, start, end, share_bytes), homes / f"server{start}")
                for start, end in itertools.pairwise(cuts)
            ]
            for ready in await asyncio.gather(*(server.ready(_START_TIMEOUT_S) for server in servers)):
                reporter.say(f"  {ready['peer_id']} serves blocks {ready['blocks']} of {ready['model']}")
                reporter.event("server", {"peer_id": ready["peer_id"], "blocks": ready["blocks"]})
            client = await nodes.start(_generate_arguments(join, options), homes / "client")
            await _relay(client, options, reporter)
            say_receipts(homes / "client", reporter)
    reporter.say(f"\nDone in {time.monotonic() - started_s:.1f} s; every process of the swarm has ended.")


def _serve_arguments(join: str, start: int, end: int, max_memory_bytes: int) -> list[str]:
    return [
        "serve", EMBEDDED, "--join", join, "--blocks", f"{start}:{end}", "--max-memory", str(max_memory_bytes),
        "--device", "cpu", "--num-threads", "1", "--exit-with-stdin",
    ]  # fmt: skip


def _generate_arguments(join: str, options: DemoOptions) -> list[str]:
    return [
        "generate", EMBEDDED, "--join", join, "--prompt", options.prompt,
        "--max-new-tokens", str(options.max_new_tokens), "--seed", str(options.seed),
        "--exit-with-stdin",
    ]  # fmt: skip


def say_receipts(home: Path, reporter: Reporter) -> None:
    """Say who did how much for whom, from the receipts that a home holds; their signatures are checked again."""
    with Ledger.open_to_read(home / LEDGER) as ledger:
        held = [signed.record for own in ledger.owners() for signed in ledger.newest(own)]
    receipts = wanted(held, ReceiptsOptions(home))
    reporter.say("")
    for line in sums_in_lines(receipts):
        reporter.say(line)
    for (provider, consumer), total in sums_of_pairs(receipts):
        fields = {"provider": provider, "consumer": consumer, "tokens": total.tokens}
        reporter.event("work", {**fields, "block_tokens": total.block_tokens})


async def _relay(client: Child, options: DemoOptions, reporter: Reporter) -> None:
    """Pass the client's text on as it comes; say who served it."""
    reporter.say(f"\nThe client holds no transformer block. Prompt: {options.prompt}")
    served: list[str] = []
    started_s: float | None = None
    while (event := await client.next_event(_START_TIMEOUT_S)) is not None:
        if event["event"] == "route":
            served = [f"  blocks {stage['blocks']} by {stage['peer_id']}" for stage in event["stages"]]
            reporter.event("route", {"stages": event["stages"]})
        elif event["event"] == "text":
            started_s = started_s or time.monotonic()
            reporter.result(event["text"])
    if await client.wait() != 0:
        raise ChildFailed(f"The client failed: {await client.last_words()}")
    if started_s is None:
        raise UnavailableError("The client ended without text; run `efedllm doctor`.")
    if not reporter.events_json:
        reporter.result("\n")
    reporter.say(f"\nStreamed for {time.monotonic() - started_s:.1f} s. Who served which blocks:")
    for line in served:
        reporter.say(line)
