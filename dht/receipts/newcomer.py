"""Read a whole window of receipts at once: what snapshots hold from their publishers, the rest from the DHT.

    snapshots   |==================)            all signatures checked, compared with the DHT at random keys
    DHT                            [=====]      the snapshot's newest epoch, and what came after it
    window      |------------------------|

A snapshot that lacks what stands on the DHT is named and not used; then its epochs are read from the DHT like the
others. Of several sound ones everything counts that any of them holds. This file does not know what is done with
receipts. It runs on the event loop.
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
from dht.receipts.snapshots import Content, SpotCheck, newest_record, read_content, spot_check
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
        return self.check is not None and self.check.is_sound


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
    providers = {ident.peer for ident in identities} | await known_providers(swarm, shards=())
    verdicts = []
    receipts: dict[bytes, SignedRecord] = {}  # by envelope: publishers have mostly the same
    covered: set[int] = set()
    left_s = READ_S
    for publisher in _publishers(bootstraps, identities):
        record = await newest_record(swarm, publisher, window[-1])
        if record is None or record.first_epoch == record.epoch or record.epoch < window[0]:
            continue  # Its newest epoch is read from the DHT all the same.
        began_s = time.monotonic()
        content = await _content(swarm, record, checker, left_s)
        left_s -= time.monotonic() - began_s
        verdict = content if isinstance(content, Verdict) else await _compared(swarm, content, providers, rng)
        verdicts.append(verdict)
        if verdict.is_used and isinstance(content, Content):
            receipts.update((signed.envelope, receipts.get(signed.envelope, signed)) for signed in content.receipts)
            covered.update(range(record.first_epoch, record.epoch))
    known = providers | {signed.record.provider for signed in receipts.values() if isinstance(signed.record, Receipt)}
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


async def _compared(swarm: Swarm, content: Content, providers: Iterable[str], rng: random.Random) -> Verdict:
    check = await spot_check(swarm, _without_newest_epoch(content), providers, rng)
    return Verdict(content.record, check, is_false=not check.is_sound)


def _without_newest_epoch(content: Content) -> Content:
    """Leave out the epoch whose receipts may have come after the snapshot: whoever reads, reads it from the DHT."""
    newest = content.record.epoch
    older = tuple(
        signed for signed in content.receipts if isinstance(signed.record, Receipt) and signed.record.epoch < newest
    )
    return Content(replace(content.record, epoch=newest - 1), older)
