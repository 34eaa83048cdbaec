"""Who a client is in a swarm, and the book of what it has signed for: kept at home where that can be, else in memory.

A client that keeps its identity is known to servers as one that signs; another process of the same home that runs at
the same time takes an identity of its own, which lives as long as it does. Runs in the client's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from dht.errors import IdentityDamaged, IdentityInUse, IdentityNotWritten, LedgerDamaged, LedgerNotWritten
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.receipts.async_ledger import AsyncLedger
from dht.receipts.ledger import Ledger
from dht.rules import Rules
from dht.swarm import Swarm
from node.client.dealings import Dealings
from node.config import CLIENT_IDENTITY, LEDGER

logger = logging.getLogger(__name__)

_RULES_S = 10.0
"""How long the swarm's rules are waited for."""


async def enter_swarm(exits: contextlib.AsyncExitStack, code: JoinCode, home: Path | None) -> tuple[Swarm, Identity]:
    """Join as a client that serves nothing.

    Args:
        exits: ends what is begun here.
        code: the swarm.
        home: where the client's identity is kept; None: it lives as long as this process.
    """
    identity = _identity(home)
    try:
        return await exits.enter_async_context(Swarm(identity, join=code, client_mode=True)), identity
    except IdentityInUse:
        identity = Identity.ephemeral()
        return await exits.enter_async_context(Swarm(identity, join=code, client_mode=True)), identity


def _identity(home: Path | None) -> Identity:
    if home is None:
        return Identity.ephemeral()
    try:
        return Identity.load_or_create(home / CLIENT_IDENTITY)
    except (IdentityNotWritten, IdentityDamaged) as error:
        logger.warning("%s; this client is nobody's this time", error)
        return Identity.ephemeral()


async def open_dealings(
    exits: contextlib.AsyncExitStack, swarm: Swarm, identity: Identity, home: Path | None, manifest: bytes, name: str
) -> Dealings:
    """Begin to sign for what servers do.

    Args:
        exits: ends what is begun here.
        swarm: entered.
        identity: of the client.
        home: where the ledger is kept; None: in memory.
        manifest: identity of the model, 32 bytes.
        name: of the model, for people; empty: not known.

    Raises:
        PeerUnreachable: the swarm's rules are not to be had.
    """
    rules = await swarm.wait_for_rules(_RULES_S)
    path = home / LEDGER if home is not None else None
    ledger = await exits.enter_async_context(AsyncLedger(await asyncio.to_thread(_open, path, identity.peer_id, rules)))
    if name:
        await ledger.ask(lambda held: held.note_model(manifest, name))
    dealings = Dealings(identity, ledger, rules)
    if identity.path is not None:
        await dealings.take_lanes()
        exits.push_async_callback(dealings.close)
    else:  # Nobody will be this client again.
        exits.push_async_callback(dealings.drained)
    return dealings


def _open(path: Path | None, own: str, rules: Rules) -> Ledger:
    try:
        return Ledger.open(path, own=own, rules=rules)
    except (LedgerNotWritten, LedgerDamaged) as error:
        logger.warning("%s; what this client takes is not kept", error)
        return Ledger.open(None)
