#!/usr/bin/env python3
"""Measure what receipts cost: checking one, and checking and adding up very many in two worker processes.

Beside it, in the same run, what the two signatures of a receipt cost alone: nothing that checks them all can be faster.
``validate_us`` is the processor time of the validator for a receipt that it has not seen, ``known_us`` for one that it
has, ``refuse_us`` for one whose body is malformed; medians over rounds. ``total_s`` is the time from envelopes to sums
by provider, consumer and model; the making of the envelopes is not counted. With ``--swarm N`` it also starts N members
on loopback, in another process, and publishes batches of ``--publish`` receipts of one provider: ``publish_ms`` is the
processor time of the publisher a receipt, ``publish_p2pd_ms`` that of its p2pd. Prints one JSON line; the exit code is
1 when a bound is missed (``MAX_...``; of a validation what comes on top of its signatures may take half of it).
"""

import argparse
import asyncio
import json
import operator
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from bench.cpu_time import cpu_seconds
from bench.report import circumstances, spread

from dht.codec import encode
from dht.identity import Identity, forget_signatures, peer_id_to_bytes, verify
from dht.parameters import JoinCode
from dht.receipts.checking import SignatureChecker
from dht.receipts.reader import check_envelopes
from dht.receipts.totals import Newest, group
from dht.records import Envelope, dht_id, key_bytes, seal
from dht.rules import DEFAULT_RULES, Rules
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.validation import RecordValidator
from dht.work import Receipt, WorkKind

ROUNDS, CALLS = 9, 100
NUM_PEERS = 200
MAX_TOTAL_S = 20.0
MAX_VALIDATE_US = 300.0
MAX_PUBLISH_MS = 2.0
PART = 4096


def made(rng: random.Random, provider: Identity, consumer: Identity, lane: int, rules: Rules, epoch: int) -> Receipt:
    """Make a receipt as a session of a few hundred tokens leaves it."""
    tokens, start = 64 * rng.randrange(1, 20), rules.start_of(epoch)
    return Receipt(
        provider=provider.peer_id,
        consumer=consumer.peer_id,
        epoch=epoch,
        lane=lane,
        work_kind=WorkKind.DECODE,
        seq=rng.randrange(1, 20),
        manifest=bytes([rng.randrange(4)]) * 32,
        start=0,
        end=8,
        profile=bytes(32),
        sessions=1,
        amount=tokens,
        work=8 * tokens,
        bytes_in=2048 * tokens,
        bytes_out=2048 * tokens,
        commitment=rng.randbytes(32),
        t_first=start,
        t_last=start + rules.epoch_s // 2,
    )


def many(num_receipts: int, seed: int) -> list[bytes]:
    """Make sealed receipts of some hundred peers for one another."""
    rng = random.Random(seed)  # noqa: S311 - figures that repeat, no secret
    epoch = DEFAULT_RULES.epoch_of(time.time())
    peers = [Identity.ephemeral() for _ in range(NUM_PEERS)]
    envelopes = []
    for lane in range(num_receipts):
        provider, consumer = rng.sample(peers, 2)
        envelopes.append(seal(made(rng, provider, consumer, lane, DEFAULT_RULES, epoch), provider, consumer).envelope)
    return envelopes


def microseconds(call: Callable[[int], object]) -> list[float]:
    """Time a call by the processor's clock; one figure a round."""
    figures = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for index in range(CALLS):
            call(index)
        figures.append((time.process_time() - began) / CALLS * 1e6)
    return figures[1:]


def checking_one(envelopes: Sequence[bytes]) -> dict[str, float]:
    """Measure the validator beside the two signatures alone."""
    validator = RecordValidator()
    opened = [Envelope.from_bytes(envelope) for envelope in envelopes[:CALLS]]
    receipts = [Receipt.from_body(each.body) for each in opened]
    places = [
        (dht_id(_key(receipt)), encode(receipt.subkey), envelope, receipt.expires_s(DEFAULT_RULES))
        for receipt, envelope in zip(receipts, envelopes, strict=False)
    ]
    malformed = [(key, subkey, value[:8] + b"\xc1" + value[9:], when) for key, subkey, value, when in places]

    def signatures(index: int) -> None:
        forget_signatures()
        for author, signature in zip(receipts[index].authors, opened[index].signatures, strict=True):
            assert verify(peer_id_to_bytes(author), Receipt.KIND, opened[index].body, signature)

    def unseen(index: int) -> None:
        forget_signatures()
        if index == 0:
            validator.__init__()  # type: ignore[misc]  # forgets what it has verified
        assert validator.why_not(*places[index]) is None

    def known(index: int) -> None:
        assert validator.why_not(*places[index]) is None

    def refused(index: int) -> None:
        assert validator.why_not(*malformed[index]) is not None

    return {
        **spread("two_signatures_us", microseconds(signatures), 1),
        **spread("validate_us", microseconds(unseen), 1),
        **spread("known_us", microseconds(known), 1),
        **spread("refuse_us", microseconds(refused), 1),
    }


def _key(receipt: Receipt) -> bytes:
    return key_bytes(Receipt.KIND, receipt.key_parts())


async def checking_many(envelopes: Sequence[bytes]) -> dict[str, float]:
    """Check and add up all of them."""
    newest = Newest()
    forget_signatures()
    began, cpu = time.perf_counter(), time.process_time()
    async with SignatureChecker(many=1) as checker:
        async for signed in check_envelopes(envelopes, DEFAULT_RULES, time.time(), checker):
            newest.add(signed.record)
        for by in ("provider", "consumer", "manifest"):
            group(newest.changes(), operator.attrgetter(by))
        total_s = time.perf_counter() - began
    assert len(newest) == len(envelopes)
    return {
        "num_receipts": len(envelopes),
        "total_s": round(total_s, 2),
        "own_process_s": round(time.process_time() - cpu, 2),
    }


async def publishing(join: str, num_nodes: int, num_receipts: int, seed: int) -> dict[str, float]:
    """Publish receipts of one provider in batches to members that run elsewhere, and find out what that costs."""
    rng = random.Random(seed)  # noqa: S311 - figures that repeat, no secret
    provider, consumers = Identity.ephemeral(), [Identity.ephemeral() for _ in range(20)]
    replicas, own_ms, daemon_ms, wall_ms = [], [], [], []
    async with Swarm(provider, join=JoinCode.parse(join), client_mode=True) as swarm:
        rules = swarm.validator.rules
        epoch = rules.epoch_of(time.time())
        for batch in range(ROUNDS):
            signed = []
            for lane in range(batch * num_receipts, (batch + 1) * num_receipts):
                consumer = consumers[lane % len(consumers)]
                signed.append(seal(made(rng, provider, consumer, lane, rules, epoch), provider, consumer))
            own, daemon, wall = time.process_time(), cpu_seconds([swarm._daemon.pid]), time.perf_counter()  # noqa: SLF001
            replicas += await swarm.store_many(signed)
            own_ms.append((time.process_time() - own) / num_receipts * 1e3)
            daemon_ms.append((cpu_seconds([swarm._daemon.pid]) - daemon) / num_receipts * 1e3)  # noqa: SLF001
            wall_ms.append((time.perf_counter() - wall) / num_receipts * 1e3)
    return {
        "nodes": num_nodes,
        "batch": num_receipts,
        "replicas": min(replicas),
        **spread("publish_ms", own_ms[1:]),  # the first also finds out how large the swarm is
        **spread("publish_p2pd_ms", daemon_ms[1:]),
        **spread("publish_wall_ms", wall_ms[1:]),
    }


async def hosting(num_nodes: int) -> None:
    """Run members for another process until its end of our input closes."""
    async with testnet(num_nodes) as nodes:
        print(JoinCode(tuple(nodes[0].addresses), nodes[0].name).encode(), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def published(num_nodes: int, num_receipts: int, seed: int) -> dict[str, float]:
    """Start members in a process of their own, and publish to them."""
    command = [sys.executable, __file__, "--host", str(num_nodes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        return asyncio.run(publishing(host.stdout.readline().strip(), num_nodes, num_receipts, seed))


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receipts", type=int, default=100_000, help="how many are checked and added up")
    parser.add_argument("--swarm", type=int, default=0, help="members on loopback; 0: publish nothing")
    parser.add_argument("--publish", type=int, default=100, help="receipts in one publication")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        asyncio.run(hosting(options.host))
        return 0
    envelopes = many(max(CALLS, options.receipts), options.seed)
    line = {**circumstances("receipts", options.seed), "envelope_bytes": max(map(len, envelopes))}
    line |= checking_one(envelopes)
    line |= asyncio.run(checking_many(envelopes))
    if options.swarm:
        line |= published(options.swarm, options.publish, options.seed)
    print(json.dumps(line))
    overhead_us = line["validate_us"] - line["two_signatures_us"]
    is_good = overhead_us <= MAX_VALIDATE_US / 2 and line["total_s"] <= MAX_TOTAL_S * options.receipts / 100_000
    return 0 if is_good and line.get("publish_ms", 0.0) <= MAX_PUBLISH_MS else 1


if __name__ == "__main__":
    sys.exit(main())
