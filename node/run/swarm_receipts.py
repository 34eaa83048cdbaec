"""``efedllm receipts --join``: the receipts that the DHT of a swarm holds, every signature checked again.

What snapshots hold is read from their publishers and compared with the DHT; the rest is read from the DHT itself.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.status import Status

from dht.directory import read_models
from dht.identity import Identity
from dht.parameters import JoinCode, split_address
from dht.receipts.checking import SignatureChecker
from dht.receipts.equivocations import EquivocationWatch
from dht.receipts.ledger import Ledger
from dht.receipts.newcomer import Beginning, begin, complete
from dht.receipts.publisher import period_s
from dht.receipts.receipt_rows import Repaired
from dht.records import SignedRecord
from dht.rules import Rules
from dht.swarm import Swarm
from node.config import LEDGER
from node.run.exit_codes import OK
from node.run.key_care import look_at_keys
from node.run.reading_words import contradiction_in_words, nothing_found, plan_in_words, verdict_in_words
from node.run.receipts import ReceiptsOptions, check_peers, say, show, wanted

RULES_S = 15.0
"""Seconds that the swarm's rules are waited for: without them nobody can say which epochs there are."""


async def run_swarm_receipts(join: JoinCode, options: ReceiptsOptions) -> int:
    """List what the DHT of a swarm holds; returns the exit code.

    Raises:
        PeerUnreachable: No member has the swarm's rules.
    """
    check_peers(options)
    own = own_ids(options.home) if options.repair else set()
    async with (
        Swarm(Identity.ephemeral(), join=join, client_mode=True) as swarm,
        EquivocationWatch(swarm) as watch,
        SignatureChecker() as checker,
    ):
        rules = await swarm.wait_for_rules(RULES_S)
        window = epochs(rules, options.since_s, time.time())
        with _busy("looking for snapshots and providers"):
            beginning = await _begin(swarm, join, options, window, checker)
        beginning = replace(beginning, providers=tuple(sorted({*beginning.providers, *own})))
        for verdict in beginning.verdicts:
            sys.stderr.write(f"{verdict_in_words(verdict)}\n")
        sys.stderr.write(f"{plan_in_words(beginning)}\n")
        held = await _all(complete(swarm, beginning, checker))
        for peer in watch.accused:
            sys.stderr.write(f"{contradiction_in_words(peer)}\n")
        names = {model.manifest: model.name for model in await read_models(swarm)}
    if options.repair:
        sys.stderr.write(f"{await asyncio.to_thread(refill, options.home, own, held)}\n")
    show(options, wanted([signed.record for signed in held], options), names, nothing_found(period_s(rules)))
    return OK


async def _all(receipts: AsyncIterator[SignedRecord]) -> list[SignedRecord]:
    """Take all that is read; say on a terminal how much that is so far, since strangers decide how much there is."""
    held: list[SignedRecord] = []
    with _busy("reading receipts") as shown:
        async for signed in receipts:
            held.append(signed)
            shown.update(f"reading receipts: {len(held)}")
    return held


def _busy(words: str) -> Status:
    return Console(stderr=True).status(words)


async def _begin(
    swarm: Swarm, join: JoinCode, options: ReceiptsOptions, window: range, checker: SignatureChecker
) -> Beginning:
    if options.providers:  # A few keys: sooner read than a snapshot.
        return Beginning((), (), options.providers, tuple(window))
    bootstraps = [split_address(address)[1] for address in join.addresses]
    return await begin(swarm, list(dict.fromkeys(bootstraps)), window, checker, random.SystemRandom())


def own_ids(home: Path) -> set[str]:
    """Name the peer ids whose receipts a home keeps, or should."""
    with Ledger.open_to_read(home / LEDGER, tell=say) as ledger:
        owners = set(ledger.owners())
    return owners | {care.peer_id for care in look_at_keys(home) if care.peer_id is not None}


def refill(home: Path, own: Iterable[str], held: Collection[SignedRecord]) -> str:
    """Write into a home's ledger what it lacks of its own; returns a sentence on that."""
    with Ledger.open(home / LEDGER, tell=say) as ledger:
        return added_in_words(repaired(ledger, own, held))


def repaired(ledger: Ledger, own: Iterable[str], held: Collection[SignedRecord]) -> list[Repaired]:
    """Write into a ledger what it lacks of its own; it may take seconds."""
    return [
        ledger.repair(peer, [signed.envelope for signed in held if peer in signed.record.authors])
        for peer in sorted(own)
    ]


def added_in_words(outcomes: Sequence[Repaired]) -> str:
    """Say what has come of it, in a sentence."""
    said = f"{sum(outcome.added for outcome in outcomes)} receipts were added to the ledger"
    num_against = sum(len(outcome.contradictions) for outcome in outcomes)
    return f"{said}; {num_against} contradict what it holds, and were left out." if num_against else f"{said}."


def epochs(rules: Rules, since_s: int | None, now_s: float) -> range:
    """Name the epochs whose receipts are asked for: those since a date that the DHT may still hold, to the present."""
    present = rules.epoch_of(now_s)
    oldest = max(0, present - rules.window_epochs)
    first = oldest if since_s is None else max(oldest, rules.epoch_of(since_s))
    return range(first, present + 1)
