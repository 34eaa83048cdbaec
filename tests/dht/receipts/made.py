"""Receipts of the present epoch, a source of them, and a way past the network into one member's storage."""

import time
from collections.abc import Sequence

from hivemind.dht.routing import DHTID

from dht.identity import Identity
from dht.records import SignedRecord, seal
from dht.rules import DEFAULT_RULES, Rules
from dht.swarm import Swarm
from tests.dht.samples import receipt


def sealed(
    provider: Identity, consumer: Identity, rules: Rules = DEFAULT_RULES, *, epochs_ago: int = 0, **changes
) -> SignedRecord:
    """A receipt of now, or of an earlier epoch."""
    epoch = rules.epoch_of(time.time()) - epochs_ago
    began = rules.start_of(epoch)
    made = receipt(provider, consumer, **{"epoch": epoch, "t_first": began, "t_last": began + 1, **changes})
    return seal(made, provider, consumer, rules=rules)


def put(node: Swarm, signed: SignedRecord) -> None:
    """Store at one member alone."""
    key_id = DHTID.generate(source=signed.key)
    assert node._overlay.protocol.storage.store_subkey(key_id, signed.subkey, signed.envelope, signed.expires_s)


def holds(node: Swarm, signed: SignedRecord) -> bool:
    """Say whether a member holds a record itself."""
    standing = node._overlay.protocol.storage.standing(DHTID.generate(source=signed.key), signed.subkey)
    return standing is not None and standing[0] == signed.envelope


class Memory:
    """A source of receipts in memory."""

    def __init__(self, *signed: SignedRecord) -> None:
        self.signed = list(signed)
        self.num_changes = 0

    async def newest_envelopes(self, since_epoch: int) -> Sequence[bytes]:
        return [each.envelope for each in self.signed if each.record.epoch >= since_epoch]
