"""``efedllm receipts --join``: the receipts that the DHT of a swarm holds, every signature checked again."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterable

from dht.directory import read_directory, read_models
from dht.errors import BadRecord
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.receipts.cosigned import check_receipt
from dht.records import SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import Receipt
from node.run.exit_codes import OK
from node.run.receipts import ReceiptsOptions, check_peers, show, wanted


async def run_swarm_receipts(join: JoinCode, options: ReceiptsOptions) -> int:
    """List what the DHT of a swarm holds; returns the exit code."""
    from dht.receipts.reader import collect_receipts  # type: ignore[import-not-found, import-untyped, unused-ignore]

    check_peers(options)
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        models = await read_models(swarm)
        providers = options.providers or await _servers(swarm, [model.manifest for model in models])
        window = epochs(swarm.validator.rules, options.since_s, time.time())
        found: AsyncIterator[SignedRecord] = collect_receipts(swarm, providers, window)
        held, num_bad = await _checked(found)
    if num_bad:
        sys.stderr.write(f"{num_bad} records that are no receipts signed by both were left out.\n")
    show(options, wanted(held, options), {model.manifest: model.name for model in models})
    return OK


def epochs(rules: Rules, since_s: int | None, now_s: float) -> range:
    """Name the epochs whose receipts are asked for: those since a date that the DHT may still hold, to the present."""
    present = rules.epoch_of(now_s)
    oldest = max(0, present - rules.window_epochs)
    first = oldest if since_s is None else max(oldest, rules.epoch_of(since_s))
    return range(first, present + 1)


async def _servers(swarm: Swarm, manifests: Iterable[bytes]) -> tuple[str, ...]:
    """List whoever serves something now: without a name, receipts can only be looked for at those."""
    directories = [await read_directory(swarm, manifest, time.time()) for manifest in manifests]
    return tuple(sorted({server.owner for directory in directories for server in directory.servers}))


async def _checked(found: AsyncIterator[SignedRecord]) -> tuple[list[Receipt], int]:
    """Check every signature again; returns what is sound, and how many are not."""
    receipts: dict[bytes, Receipt] = {}
    num_bad = 0
    async for signed in found:
        try:
            receipts[signed.envelope] = check_receipt(signed.envelope)
        except BadRecord:
            num_bad += 1
    return list(receipts.values()), num_bad
