"""``efedllm identity rotate``: end this node's identity, and let a new one inherit what it has earned.

    new key on disk ──> SUCCESSION, signed by both, stands in the swarm ──> new key in the old one's place

So nothing is told before the new key is safe, and the old one stays in use until members hold the record. Killed in
between, the same command goes on where it was, with the same new key. Runs on the event loop of a command.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dht.ident import Succession
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import seal
from dht.swarm import Swarm
from node.config import IDENTITY
from node.errors import NotStored, UserError
from node.run.identity import replace_identity
from node.run.swarm_receipts import RULES_S

SUCCESSOR = "identity.successor"
"""Beside the key: the one that is going to take its place."""


async def rotate(home: Path, join: JoinCode) -> None:
    """Make a new identity, let a swarm know that it inherits, and put it in the place of the node's.

    Args:
        home: The node's state directory.
        join: Of the swarm in which the old identity has worked.

    Raises:
        UserError: There is no identity.
        IdentityInUse: A node runs with it.
        NotStored: No member of the swarm keeps the record; the old identity is still this node's.
    """
    path = home / IDENTITY
    try:
        old = Identity.load(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no identity in {home}; `efedllm identity show` makes one.") from None
    new = Identity.load_or_create(home / SUCCESSOR)
    async with Swarm(old, join=join, client_mode=True) as swarm:
        rules = await swarm.wait_for_rules(RULES_S)
        record = Succession(old.peer_id, new.peer_id, rules.epoch_of(time.time()))
        (num_members,) = await swarm.store_many([seal(record, old, new, rules=rules)])
    if not num_members:
        raise NotStored(
            "No member of the swarm keeps the record of succession, so nothing has changed; run it again when a "
            "bootstrap or a server answers."
        )
    replace_identity(Identity.from_seed(new.seed(), path), path, old.peer_id)
    (home / SUCCESSOR).unlink(missing_ok=True)
    sys.stdout.write(f"{new.peer_id}\n")
    sys.stderr.write(
        f"{num_members} members of the swarm know that it inherits from {old.peer_id}, which nobody must run any more. "
        "What that one earned in another swarm stays with it. Make a backup: `efedllm identity export FILE`.\n"
    )
