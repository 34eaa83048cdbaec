"""``efedllm receipts --join``: the receipts that the DHT of a swarm holds, every signature checked again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from dht.directory import read_directory, read_models
from dht.errors import BadRecord
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.receipts.cosigned import check_receipt
from dht.receipts.ledger import Ledger
from dht.records import SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import Receipt
from node.run.exit_codes import OK
from node.run.key_care import look_at_key
from node.run.receipts import LEDGER, ReceiptsOptions, check_peers, show, wanted


async def run_swarm_receipts(join: JoinCode, options: ReceiptsOptions) -> int:
    """List what the DHT of a swarm holds; returns the exit code."""
    from dht.receipts.reader import collect_receipts  # type: ignore[import-not-found, import-untyped, unused-ignore]

    check_peers(options)
    own = own_ids(options.home) if options.repair else set()
    async with Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm:
        models = await read_models(swarm)
        providers = options.providers or tuple(sorted(own | await _servers(swarm, [it.manifest for it in models])))
        window = epochs(swarm.validator.rules, options.since_s, time.time())
        found: AsyncIterator[SignedRecord] = collect_receipts(swarm, providers, window)
        held, num_bad = await _checked(found)
    if num_bad:
        sys.stderr.write(f"{num_bad} records that are no receipts signed by both were left out.\n")
    if options.repair:
        sys.stderr.write(f"{await asyncio.to_thread(refill, options.home, own, held)}\n")
    show(options, wanted(held.values(), options), {model.manifest: model.name for model in models})
    return OK


def own_ids(home: Path) -> set[str]:
    """Name the peer ids whose receipts a home keeps, or should."""
    with Ledger.open_to_read(home / LEDGER) as ledger:
        owners = set(ledger.owners())
    peer_id = look_at_key(home).peer_id
    return owners | {peer_id} if peer_id is not None else owners


def refill(home: Path, own: Iterable[str], held: Mapping[bytes, Receipt]) -> str:
    """Write into a home's ledger what it lacks of its own; returns a sentence on that."""
    with Ledger.open(home / LEDGER) as ledger:
        outcomes = [
            ledger.repair(peer, [envelope for envelope, receipt in held.items() if peer in receipt.authors])
            for peer in sorted(own)
        ]
    said = f"{sum(outcome.added for outcome in outcomes)} receipts were added to the ledger"
    num_against = sum(len(outcome.contradictions) for outcome in outcomes)
    return f"{said}; {num_against} contradict what it holds, and were left out." if num_against else f"{said}."


def epochs(rules: Rules, since_s: int | None, now_s: float) -> range:
    """Name the epochs whose receipts are asked for: those since a date that the DHT may still hold, to the present."""
    present = rules.epoch_of(now_s)
    oldest = max(0, present - rules.window_epochs)
    first = oldest if since_s is None else max(oldest, rules.epoch_of(since_s))
    return range(first, present + 1)


async def _servers(swarm: Swarm, manifests: Iterable[bytes]) -> set[str]:
    """Name whoever serves something now: without a name, receipts can only be looked for at those."""
    directories = [await read_directory(swarm, manifest, time.time()) for manifest in manifests]
    return {server.owner for directory in directories for server in directory.servers}


async def _checked(found: AsyncIterator[SignedRecord]) -> tuple[dict[bytes, Receipt], int]:
    """Check every signature again; returns what is sound by its envelope, and how many are not."""
    receipts: dict[bytes, Receipt] = {}
    num_bad = 0
    async for signed in found:
        try:
            receipts[signed.envelope] = check_receipt(signed.envelope)
        except BadRecord:
            num_bad += 1
    return receipts, num_bad
