"""Compare a snapshot with the DHT at random keys: does its publisher leave receipts out?

    of the content    (provider, epoch) ...   some of those that the publisher names itself
    from elsewhere    (provider, epoch) ...   some of those who announce, some of those who have an identity, and some
                                              keys of other publishers' receipts: none is this publisher's choice

A publisher can fill its content with receipts of its own ids, so either half must be sound by itself; and many ids that
have done nothing can dilute what is drawn from elsewhere, so a check counts only when enough of that was really there.
Many ids with receipts of their own on the DHT can still hide a provider of whom no other publisher knows: a sample
finds who leaves out much, not who leaves out little. This file does not know whose snapshots are read. It runs on the
event loop.
"""

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dht.receipts.checking import SignatureChecker
from dht.receipts.reader import collect_keys
from dht.receipts.snapshots import Content
from dht.swarm import Swarm
from dht.work import Receipt, Slot

NUM_CHECKS = 16
"""Keys of the content that are read from the DHT, and as many of every source elsewhere in each round."""

MAX_ROUNDS = 16
"""Rounds in which more keys from elsewhere are drawn while too few of them hold anything."""

MIN_MET = 8
"""Keys from elsewhere at which receipts must stand, for a check that found nothing missing to prove anything."""

TOLERATED = 0.01
"""Share of the slots seen on the DHT that a sound snapshot may lack: some were published after it was made."""

Key = tuple[str, int]
"""Peer id of a provider, and an epoch: where receipts stand on the DHT."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a reader looks for what a publisher may have left out."""

    sources: tuple[Sequence[str], ...]  # peer ids; as many are drawn from each
    keys: Sequence[Key] = ()  # of other publishers' receipts

    def draw(self, epochs: range, rng: random.Random, num: int) -> set[Key]:
        """Draw some keys from everywhere; the same one may be drawn again."""
        drawn = {(rng.choice(peers), rng.choice(epochs)) for peers in self.sources if peers for _ in range(num)}
        return drawn | {rng.choice(self.keys) for _ in range(num if self.keys else 0)}


@dataclass(frozen=True, slots=True)
class Compared:
    """What stands on the DHT at some keys, and what a snapshot has of it."""

    num_keys: int = 0  # (provider, epoch) that were read
    num_met: int = 0  # of these, those at which anything stands
    num_slots: int = 0  # slots that stand there
    num_missing: int = 0  # of these, those of which the snapshot has nothing, or something older

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(
            self.num_keys + other.num_keys,
            self.num_met + other.num_met,
            self.num_slots + other.num_slots,
            self.num_missing + other.num_missing,
        )

    @property
    def is_sound(self) -> bool:
        """Say whether hardly anything is missing."""
        return self.num_missing <= TOLERATED * self.num_slots


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """What a sample of the DHT says about a snapshot."""

    own: Compared  # at keys of the content
    elsewhere: Compared  # at keys that the publisher did not choose

    @property
    def both(self) -> Compared:
        """What was read in all."""
        return self.own + self.elsewhere

    @property
    def is_sound(self) -> bool:
        """Say whether hardly anything was found missing."""
        return self.own.is_sound and self.elsewhere.is_sound

    @property
    def is_enough(self) -> bool:
        """Say whether so much was there to compare that missing receipts would have been seen."""
        return self.elsewhere.num_met >= MIN_MET


async def spot_check(
    swarm: Swarm, content: Content, elsewhere: Elsewhere, rng: random.Random, checker: SignatureChecker
) -> SpotCheck:
    """Compare a snapshot with the DHT at random keys.

    Args:
        swarm: Where.
        content: What is checked.
        elsewhere: Where else receipts of its epochs may be found.
        rng: Draws the keys; the publisher must not foresee it.
        checker: Checks signatures.

    Raises:
        DaemonDied: Our own p2pd has ended.
    """
    slots, held = await asyncio.to_thread(_held, content)
    own = set(rng.sample(held, min(NUM_CHECKS, len(held))))
    epochs = range(content.record.first_epoch, content.record.epoch + 1)
    read: set[Key] = set()
    found = Compared()
    for _ in range(MAX_ROUNDS):
        fresh = elsewhere.draw(epochs, rng, NUM_CHECKS) - read
        read |= fresh
        found += await _compared(swarm, sorted(fresh), slots, checker)
        if found.num_met >= MIN_MET:
            break
    return SpotCheck(await _compared(swarm, sorted(own - read), slots, checker), found)


def _held(content: Content) -> tuple[dict[Slot, int], list[Key]]:
    slots = content.slots
    return slots, sorted({(slot.provider, slot.epoch) for slot in slots})


async def _compared(swarm: Swarm, keys: Collection[Key], slots: dict[Slot, int], checker: SignatureChecker) -> Compared:
    compared = Compared(num_keys=len(keys))
    async for found in collect_keys(swarm, keys, checker):
        receipts = [signed.record for signed in found if isinstance(signed.record, Receipt)]
        num_missing = sum(slots.get(receipt.slot, 0) < receipt.seq for receipt in receipts)
        compared += Compared(0, bool(receipts), len(receipts), num_missing)
    return compared
