#!/usr/bin/env python3
"""Measure what it takes to read the rulings of a swarm's anchors for as long as convictions count.

Real nodes on loopback hold so many rulings of every epoch and anchor. In each round a node that has just joined reads
all of them for the first time, as a board does, and ``again`` as it does once an epoch. ``reference`` is what it reads
besides in any case: the claims of 40 peers in a window, of which there are none here. ``keys`` are asked for. Seconds
are the clock's, ``cpu_s`` those of this process, which is all nodes. Prints one JSON line.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any

from bench.report import circumstances, spread

from dht.claim import Claim
from dht.identity import Identity
from dht.receipts.checking import SignatureChecker
from dht.records import Record, seal
from dht.rules import DEFAULT_RULES
from dht.ruling import Backer, Outcome, RulingRecord, term_of
from dht.standing.epoch_reader import EpochReader
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import WorkKind

NUM_PEERS = 40
"""Whose claims the reference reads."""

PRESENT = DEFAULT_RULES.epoch_of(time.time())
WINDOW = range(PRESENT - DEFAULT_RULES.window_epochs + 1, PRESENT + 1)
TERMS = range(term_of(PRESENT - DEFAULT_RULES.evidence_epochs + 1), term_of(PRESENT) + 1)


def made(anchor: Identity, epoch: int, number: int) -> RulingRecord:
    """Rule on a claim; all parties are one of the anchors and two that nobody knows."""
    accuser, accused = (Identity.from_seed(bytes([each]) * 32).peer_id for each in (254, 255))
    claim = sha256(f"{epoch} {number}".encode()).digest()
    return RulingRecord(
        anchor.peer_id, epoch, claim, accuser, 0, accused, accuser, epoch, number, WorkKind.DECODE, claim[:16], 0, 1,
        Outcome.UPHELD, Backer.NOBODY, DEFAULT_RULES.start_of(epoch) + 18_000,
    )  # fmt: skip


@asynccontextmanager
async def swarm_with(num_nodes: int, anchors: Sequence[Identity], per_epoch: int) -> AsyncIterator[list[Swarm]]:
    """Run nodes that hold the rulings of all epochs that count but the present one."""
    async with testnet(num_nodes, rules=DEFAULT_RULES, anchors=[each.peer_id for each in anchors]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        for anchor in anchors:
            epochs = range(PRESENT - DEFAULT_RULES.evidence_epochs + 1, PRESENT)
            records = [seal(made(anchor, epoch, each), anchor) for epoch in epochs for each in range(per_epoch)]
            if not all(await nodes[0].store_many(records)):
                raise SystemExit("the nodes do not take what is stored; fewer --per-epoch fit.")
        yield nodes


async def measured(read: Callable[[SignatureChecker], Awaitable[Sequence[Record]]]) -> dict[str, float]:
    """Read once; say what it took."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    async with SignatureChecker() as checker:
        found = await read(checker)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return {"s": took_s, "cpu_s": cpu_s, "records": len(found)}


async def measure(num_nodes: int, num_anchors: int, per_epoch: int, rounds: int) -> dict[str, Any]:
    """Read as often as ``rounds`` says, each time as somebody who has just joined."""
    anchors = [Identity.from_seed(bytes([each]) * 32) for each in range(num_anchors)]
    peers = [Identity.ephemeral().peer_id for _ in range(NUM_PEERS)]
    figures: dict[str, list[dict[str, float]]] = {"first": [], "again": [], "reference": []}
    async with swarm_with(num_nodes, anchors, per_epoch) as nodes:
        for _ in range(rounds):
            async with Swarm(Identity.ephemeral(), join=nodes[0].join_code, client_mode=True) as newcomer:
                await newcomer.wait_for_rules(10)
                rulings, claims = EpochReader(newcomer, RulingRecord, 2), EpochReader(newcomer, Claim, 2)
                read = partial(rulings.read, [each.peer_id for each in anchors], TERMS, TERMS[-1], TERMS[0])
                figures["first"].append(await measured(read))
                rulings.begin_again()
                figures["again"].append(await measured(read))
                read_claims = partial(claims.read, peers, WINDOW, WINDOW[-1], WINDOW[0])
                figures["reference"].append(await measured(read_claims))
    num_keys = len(anchors) * len(TERMS)
    keys = {"first": num_keys, "again": num_keys, "reference": len(peers) * len(WINDOW)}
    return {name: {"keys": keys[name]} | _summary(of_name) for name, of_name in figures.items()}


def _summary(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    times = (spread(name, [each[name] for each in rounds]) for name in ("s", "cpu_s"))
    return {"records": rounds[0]["records"]} | {key: value for each in times for key, value in each.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--anchors", type=int, default=9)
    parser.add_argument("--per-epoch", type=int, default=3, help="rulings of each anchor in each epoch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    figures = asyncio.run(measure(arguments.nodes, arguments.anchors, arguments.per_epoch, arguments.rounds))
    sys.stdout.write(json.dumps(circumstances("rulings", 0) | vars(arguments) | figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
