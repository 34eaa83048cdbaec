"""Read receipts from the DHT, and find out whose there are to read.

What comes out has been checked in full: place, bounds, times and every signature. Where many come at once, signatures
are checked in worker processes (``checking``). This file does not know what is done with receipts. It runs on the
event loop.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from dht.ident import NUM_SHARDS, Ident
from dht.receipts.checking import SignatureChecker
from dht.records import MODELS_KEY, Announcement, Kind, ManifestRecord, SignedRecord
from dht.swarm import Swarm
from dht.work import Receipt, receipts_key

KEYS_AT_ONCE = 4
"""Keys that are read at once."""

Item = TypeVar("Item")
Found = TypeVar("Found")


async def collect_receipts(
    swarm: Swarm, providers: Iterable[str], window: range, *, checker: SignatureChecker | None = None
) -> AsyncIterator[SignedRecord]:
    """Stream the newest receipts of providers, one of each slot, as they are read.

    Args:
        swarm: Where.
        providers: Peer ids of those whose receipts are read.
        window: Epochs whose receipts are read.
        checker: Checks signatures; None: one that ends with the reading.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    keys = [receipts_key(provider, epoch) for provider in providers for epoch in window]
    async with contextlib.AsyncExitStack() as stack:
        if checker is None:
            checker = await stack.enter_async_context(SignatureChecker())
        check = checker

        async def forestall(envelopes: Sequence[bytes]) -> None:
            await check.forestall(swarm.validator, envelopes)

        async def read(key: tuple[bytes | int | str, ...]) -> list[SignedRecord]:
            return await swarm.read(Kind.RECEIPT, key, forestall=forestall)

        async for found in _each(read, keys):
            for signed in found:
                if isinstance(signed.record, Receipt):
                    yield signed


async def read_identities(swarm: Swarm, shards: Iterable[int] = range(NUM_SHARDS)) -> list[Ident]:
    """Read the newest IDENT of everyone who has one.

    Args:
        swarm: Where.
        shards: Keys over which identities are spread; fewer than all of them give a sample.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """

    async def read(shard: int) -> list[Ident]:
        return [record for record in await swarm.fetch(Kind.IDENT, (shard,)) if isinstance(record, Ident)]

    return [ident async for found in _each(read, list(shards)) for ident in found]


async def known_providers(
    swarm: Swarm, *, shards: Iterable[int] = range(NUM_SHARDS), num_model_shards: int = 1
) -> set[str]:
    """Find the peers that may have receipts as providers: who has an IDENT, and who announces a model now.

    Args:
        swarm: Where.
        shards: As for ``read_identities``.
        num_model_shards: Keys over which one model's servers are spread.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    providers = {ident.peer for ident in await read_identities(swarm, shards)}
    models = await swarm.fetch(Kind.MANIFEST, MODELS_KEY)
    manifests = {record.manifest for record in models if isinstance(record, ManifestRecord)}
    for manifest in sorted(manifests):
        for shard in range(num_model_shards):
            offers = await swarm.fetch(Kind.ANNOUNCE, (manifest, shard))
            providers.update(offer.owner for offer in offers if isinstance(offer, Announcement))
    return providers


async def _each(read: Callable[[Item], Awaitable[Found]], items: Sequence[Item]) -> AsyncIterator[Found]:
    """Read a few items at once and give what was found in their order."""
    for start in range(0, len(items), KEYS_AT_ONCE):
        for found in await asyncio.gather(*map(read, items[start : start + KEYS_AT_ONCE])):
            yield found
