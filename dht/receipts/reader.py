"""Read receipts from the DHT, and find out whose there are to read.

What comes out has been checked in full: place, bounds, times and every signature. Where many come at once, signatures
are checked in worker processes (``checking``). This file does not know what is done with receipts. It runs on the
event loop.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence

from dht.errors import BadRecord
from dht.ident import NUM_SHARDS, Ident
from dht.receipts.checking import SignatureChecker
from dht.receipts.cosigned import job_of
from dht.receipts.signatures import SignatureJob
from dht.records import MODELS_KEY, Announcement, Kind, ManifestRecord, SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from dht.validation import parse_envelope
from dht.work import Receipt, receipts_key

PART = 256
"""Envelopes that are decoded before the event loop gets its turn: 10 ms."""

PARTS_AHEAD = 16
"""Parts whose signatures are being checked while more are decoded."""


async def collect_receipts(
    swarm: Swarm, providers: Iterable[str], window: Sequence[int], *, checker: SignatureChecker | None = None
) -> AsyncGenerator[SignedRecord, None]:
    """Stream the newest receipts of providers, one of each slot, as they are read.

    Args:
        swarm: Where.
        providers: Peer ids of those whose receipts are read.
        window: Epochs whose receipts are read.
        checker: Checks signatures; None: one that ends with the reading.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    keys = [(provider, epoch) for provider in providers for epoch in window]
    async with contextlib.AsyncExitStack() as stack:
        if checker is None:
            checker = await stack.enter_async_context(SignatureChecker())
        async for found in collect_keys(swarm, keys, checker):
            for signed in found:
                yield signed


async def collect_keys(
    swarm: Swarm, keys: Iterable[tuple[str, int]], checker: SignatureChecker
) -> AsyncIterator[list[SignedRecord]]:
    """Stream the newest receipts at some keys, those of one key at once, in no particular order.

    Args:
        swarm: Where.
        keys: Peer ids of providers, and epochs.
        checker: Checks signatures.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """

    async def forestall(envelopes: Sequence[bytes]) -> None:
        await checker.forestall(swarm.validator, envelopes)

    packed = [receipts_key(provider, epoch) for provider, epoch in keys]
    async for found in swarm.read_many(Kind.RECEIPT, packed, forestall=forestall):
        yield [signed for signed in found if isinstance(signed.record, Receipt)]


async def read_identities(swarm: Swarm, shards: Iterable[int] = range(NUM_SHARDS)) -> list[Ident]:
    """Read the newest IDENT of everyone who has one.

    Args:
        swarm: Where.
        shards: Keys over which identities are spread; fewer than all of them give a sample.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    keys = [(shard,) for shard in shards]
    found = [signed.record async for each in swarm.read_many(Kind.IDENT, keys) for signed in each]
    return [record for record in found if isinstance(record, Ident)]


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


async def check_envelopes(
    envelopes: Iterable[bytes], rules: Rules, now_s: float, checker: SignatureChecker
) -> AsyncIterator[SignedRecord]:
    """Stream those of many envelopes that are valid receipts, wherever they came from, in their order.

    Args:
        envelopes: From a snapshot, a ledger or a file; drawn from as they are checked.
        rules: Of the swarm.
        now_s: Unix seconds.
        checker: Checks signatures.
    """
    waiting: deque[tuple[list[SignedRecord], asyncio.Task[list[bool]]]] = deque()
    try:
        for part in _parts(envelopes, PART):
            receipts = [_receipt(envelope, rules, now_s) for envelope in part]
            known = [each for each in receipts if each is not None]
            check = asyncio.get_running_loop().create_task(checker.check([job for _, job in known]))
            waiting.append(([signed for signed, _ in known], check))
            await asyncio.sleep(0)
            while len(waiting) >= PARTS_AHEAD or (waiting and waiting[0][1].done()):
                for signed in await _good(*waiting.popleft()):
                    yield signed
        while waiting:
            for signed in await _good(*waiting.popleft()):
                yield signed
    finally:
        for _, check in waiting:
            check.cancel()


def _receipt(envelope: bytes, rules: Rules, now_s: float) -> tuple[SignedRecord, SignatureJob] | None:
    try:
        opened, signed = parse_envelope(envelope, rules)
    except BadRecord:
        return None
    receipt = signed.record
    if not isinstance(receipt, Receipt) or receipt.objection(rules, now_s) is not None or signed.expires_s <= now_s:
        return None
    return signed, job_of(opened, receipt)


async def _good(known: list[SignedRecord], check: asyncio.Task[list[bool]]) -> list[SignedRecord]:
    return [signed for signed, is_good in zip(known, await check, strict=True) if is_good]


def _parts(envelopes: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    rest = iter(envelopes)
    while part := list(itertools.islice(rest, size)):
        yield part
