"""Have again from the DHT what a node's ledger has lost, while the node works: `receipts --repair` by itself.

    begun anew, nothing was damaged    what its own id did: one key for each epoch
    damaged, wholly or in some rows    what all ids of its home did and took, as `receipts --join --repair` reads it

It does not know how damage is found. Runs in the event loop; the ledger has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from dht.errors import DaemonDied, DhtError
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.checking import SignatureChecker
from dht.receipts.ledger import Ledger
from dht.receipts.newcomer import Beginning, begin, complete
from dht.receipts.receipt_rows import Repaired
from dht.records import SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from node.run.swarm_receipts import added_in_words, epochs, own_ids, repaired

logger = logging.getLogger(__name__)

RETRY_S = 60.0
"""Seconds until a swarm that could not be read, or a disk that did not take it, is tried again."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a ledger may lack."""

    own: frozenset[str]  # peer ids whose receipts are wanted
    is_of_others: bool  # whether others' work for them is wanted, too, which takes reading what everyone did


def loss_of(ledger: Ledger, home: Path, own: str) -> Loss | None:
    """Say what a ledger that was just opened may lack; None: nothing.

    Args:
        ledger: Where its rows have been checked.
        home: The node's directory.
        own: Peer id of the node.
    """
    if ledger.notices or ledger.lost():
        return Loss(frozenset(own_ids(home) | {own}), is_of_others=True)
    return Loss(frozenset({own}), is_of_others=False) if ledger.is_new else None


async def restore(swarm: Swarm, ledger: AsyncLedger, loss: Loss, rules: Rules) -> None:
    """Read what is wanted and write it into the ledger; a swarm that cannot be read is tried again.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    while True:
        try:
            outcomes = await _restored(swarm, ledger, loss, rules)
        except DaemonDied:
            raise
        except DhtError as error:
            logger.warning("the ledger could not be restored from the DHT, which is tried again: %s", error)
            await asyncio.sleep(RETRY_S)
        else:
            is_news = loss.is_of_others or any(outcome.added for outcome in outcomes)
            logger.log(logging.WARNING if is_news else logging.INFO, "From the DHT %s", added_in_words(outcomes))
            return


async def _restored(swarm: Swarm, ledger: AsyncLedger, loss: Loss, rules: Rules) -> list[Repaired]:
    held = await _read(swarm, loss, rules)
    return await ledger.ask(lambda opened: repaired(opened, loss.own, held))


async def _read(swarm: Swarm, loss: Loss, rules: Rules) -> Collection[SignedRecord]:
    """Return the receipts that the DHT holds of some peers."""
    window = epochs(rules, None, time.time())
    async with SignatureChecker() as checker:
        beginning = Beginning((), (), (), tuple(window))
        if loss.is_of_others:
            beginning = await begin(swarm, (), window, checker, random.SystemRandom())
        beginning = replace(beginning, providers=tuple(sorted({*beginning.providers, *loss.own})))
        return [
            signed
            async for signed in complete(swarm, beginning, checker)
            if loss.own.intersection(signed.record.authors)
        ]
