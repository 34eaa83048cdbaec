"""Read a whole window of receipts at once: what snapshots hold from their publishers, the rest from the DHT.

    snapshots   |==================)            all signatures checked, compared with the DHT at random keys
    DHT                            [=====]      the snapshot's newest epoch, and what came after it
    window      |------------------------|

A snapshot that lacks what stands on the DHT is named and not used, and one of which that cannot be said is not used
either; then its epochs are read from the DHT like the others. Of several sound ones everything counts that any of them
holds. This file does not know what is done with receipts. It runs on the event loop.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace

from dht.errors import NotAdmitted, PeerUnreachable, ProtocolViolation
from dht.ident import Ident, Role
from dht.receipts.checking import SignatureChecker
from dht.receipts.reader import collect_receipts, known_providers, read_identities
from dht.receipts.snapshots import Content, newest_record, read_content
from dht.receipts.spot_checks import Elsewhere, Key, SpotCheck, spot_check
from dht.records import SignedRecord
from dht.snapshot import Snapshot
from dht.swarm import Swarm
from dht.work import Receipt

MAX_SNAPSHOTS = 4
"""Publishers whose snapshots are asked for."""

READ_S = 120.0
"""Seconds that the reading of all snapshots may take, comparisons left out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one publisher's snapshot."""

    record: Snapshot
    check: SpotCheck | None = None  # None: it was not compared with the DHT
    trouble: str = ""  # why its content was not had
    is_false: bool = False  # its publisher has signed for something else than there is

    @property
    def is_used(self) -> bool:
        """Whether its receipts count."""
        return self.check is not None and self.check.is_sound and self.check.is_enough


@dataclass(frozen=True, slots=True)
class _Had:
    """A snapshot that has come, cut down to the window that is read."""

    record: Snapshot
    older: Content  # without its newest epoch, whose receipts may have come after it
    receipts: tuple[SignedRecord, ...]  # of all its epochs

    def keys(self) -> set[Key]:
        """Say where its older receipts stand on the DHT."""
        records = (each.record for each in self.older.receipts)
        return {(record.provider, record.epoch) for record in records if isinstance(record, Receipt)}


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a newcomer has before it reads the rest from the DHT."""

    verdicts: tuple[Verdict, ...]
    receipts: tuple[SignedRecord, ...]  # of sound snapshots, all signatures checked
    providers: tuple[str, ...]  # everyone who may have receipts
    rest: tuple[int, ...]  # epochs that are to be read from the DHT


async def begin(
    swarm: Swarm, bootstraps: Sequence[str], window: range, checker: SignatureChecker, rng: random.Random
) -> Beginning:
    """Find out who may have receipts, and have what sound snapshots hold of a window.

    Args:
        swarm: Where.
        bootstraps: Peer ids whose snapshots are asked for first; others say of themselves that they are such.
        window: Epochs, oldest first; the last one is the present.
        checker: Checks signatures.
        rng: Draws what is compared.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    identities = await read_identities(swarm)
    enrolled = {ident.peer for ident in identities}
    announcing = await known_providers(swarm, shards=())
    outcomes = await _read_all(swarm, _publishers(bootstraps, identities), window, checker)
    keys = {had.record.publisher: await asyncio.to_thread(had.keys) for had in outcomes if isinstance(had, _Had)}
    verdicts = []
    receipts: dict[bytes, SignedRecord] = {}  # by envelope: publishers have mostly the same
    covered: set[int] = set()
    known = announcing | enrolled
    for had in outcomes:
        if isinstance(had, Verdict):
            verdicts.append(had)
            continue
        others: set[Key] = set().union(*(each for publisher, each in keys.items() if publisher != had.record.publisher))
        elsewhere = Elsewhere((sorted(announcing), sorted(enrolled)), sorted(_of_epochs(others, had.older.record)))
        check = await spot_check(swarm, had.older, elsewhere, rng, checker)
        verdicts.append(Verdict(had.record, check, is_false=not check.is_sound))
        if not verdicts[-1].is_false:
            known |= {provider for provider, _ in keys[had.record.publisher]}
        if verdicts[-1].is_used:
            receipts.update((signed.envelope, signed) for signed in had.receipts)
            covered.update(range(had.older.record.first_epoch, had.record.epoch))
    rest = tuple(epoch for epoch in window if epoch not in covered)
    return Beginning(tuple(verdicts), tuple(receipts.values()), tuple(sorted(known)), rest)


async def complete(swarm: Swarm, beginning: Beginning, checker: SignatureChecker) -> AsyncIterator[SignedRecord]:
    """Stream what the snapshots hold and then the rest; of one slot there may be several, the newest counts.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    for signed in beginning.receipts:
        yield signed
    async for signed in collect_receipts(swarm, beginning.providers, beginning.rest, checker=checker):
        yield signed


def _publishers(bootstraps: Sequence[str], identities: Iterable[Ident]) -> list[str]:
    others = sorted(ident.peer for ident in identities if Role.BOOTSTRAP in ident.roles)
    return list(dict.fromkeys([*bootstraps, *others]))[:MAX_SNAPSHOTS]


async def _read_all(
    swarm: Swarm, publishers: Iterable[str], window: range, checker: SignatureChecker
) -> list[Verdict | _Had]:
    """Have what the publishers hold of a window; those that have nothing of it are passed over."""
    outcomes: list[Verdict | _Had] = []
    pool: dict[bytes, SignedRecord] = {}  # Each receipt is held once, whoever sends it.
    left_s = READ_S
    for publisher in publishers:
        record = await newest_record(swarm, publisher, window[-1])
        if record is None or record.first_epoch == record.epoch or record.epoch <= window[0]:
            continue  # Its newest epoch is read from the DHT all the same.
        began_s = time.monotonic()
        content = await _content(swarm, record, checker, left_s)
        left_s -= time.monotonic() - began_s
        if isinstance(content, Content):
            outcomes.append(await asyncio.to_thread(_cut, content, window, pool))
        else:
            outcomes.append(content)
    return outcomes


async def _content(swarm: Swarm, record: Snapshot, checker: SignatureChecker, timeout_s: float) -> Content | Verdict:
    """Have what a snapshot holds, or say why not."""
    try:
        async with asyncio.timeout(timeout_s):
            return await read_content(swarm, record, checker)
    except TimeoutError:
        return Verdict(record, trouble="it did not come in time")
    except (PeerUnreachable, NotAdmitted) as error:
        return Verdict(record, trouble=str(error))
    except ProtocolViolation as error:
        return Verdict(record, trouble=str(error), is_false=True)


def _cut(content: Content, window: range, pool: dict[bytes, SignedRecord]) -> _Had:
    """Leave out what is before the window: a publisher may name any, and would so choose what it is compared with."""
    record = content.record
    receipts = tuple(
        pool.setdefault(signed.envelope, signed)
        for signed in content.receipts
        if isinstance(signed.record, Receipt) and signed.record.epoch >= window[0]
    )
    older = tuple(
        signed for signed in receipts if isinstance(signed.record, Receipt) and signed.record.epoch < record.epoch
    )
    epochs = replace(record, first_epoch=max(record.first_epoch, window[0]), epoch=record.epoch - 1)
    return _Had(record, Content(epochs, older), receipts)


def _of_epochs(keys: Iterable[Key], record: Snapshot) -> set[Key]:
    return {(provider, epoch) for provider, epoch in keys if record.first_epoch <= epoch <= record.epoch}
