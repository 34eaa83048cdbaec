"""A server that dies as soon as it has signed, and a consumer that insists on its lane after each of its starts.

Each life is a process of its own, started from one that has imported everything already. The consumer asks for the one
lane that it has always had, and never hands over what it signs itself, so that the server's ledger holds no receipt of
that lane: what the server has written ahead is all that keeps it from signing a number twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.records import Kind
from tests.node.serve.contracted import Dealt, contracts, dealings
from tests.swarm.journal import Journal

LANE = 4711
JOURNAL, LEDGER = "journal", "ledger.sqlite"


def live(home: Path, num_steps: int) -> None:
    """Serve the consumer so many tokens, sign for them, and die before anything else is done."""
    server, client = (Identity.load_or_create(home / name) for name in ("identity", "client-identity"))
    journal, sign = Journal(home / JOURNAL), server.sign

    def sign_and_die(domain: int, body: bytes) -> bytes:
        signature = sign(domain, body)
        if domain == Kind.RECEIPT:
            journal.write(signed=[body.hex()])
            os.kill(os.getpid(), signal.SIGKILL)
        return signature

    server.sign = sign_and_die  # type: ignore[method-assign]
    asyncio.run(_serve(home, server, client, num_steps))


async def _serve(home: Path, server: Identity, client: Identity, num_steps: int) -> None:
    theirs = contracts(server, Ledger.open(home / LEDGER), time.time)
    ours = dealings(client, Ledger.open(None), time.time)
    ours._lanes._random = SimpleNamespace(getrandbits=lambda _: LANE)  # type: ignore[assignment]
    dealt = await Dealt(theirs, ours, client, server, signs=False).open(os.urandom(16))
    for _ in range(num_steps):
        await dealt.step()
    await dealt.theirs.check(is_last=True)
