"""Where adversaries act: two honest nodes and one that runs our own code changed for evil, in one swarm on loopback.

The adversary is a member like any other. It believes and stores whatever it likes, hands it to every honest node, and
serves it to whoever asks. What it has achieved is seen at the honest nodes, and by a reader that joins afterwards.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID

from dht.identity import Identity
from dht.records import Envelope, KeyPart, Record, SignedRecord, place, seal
from dht.rules import Rules
from dht.swarm import Swarm
from dht.testnet import testnet
from dht.work import Receipt
from tests.dht.samples import receipt

LASTING = Rules(epoch_s=2**24, window_epochs=4, evidence_epochs=8)
"""Epochs of half a year: none ends while a test runs."""


@dataclass(frozen=True)
class Evil:
    """What an adversary asks others to store, and why they should not."""

    reason: str  # word with which an honest node refuses it
    key: bytes
    subkey: bytes
    envelope: bytes
    expires_s: float


@dataclass(frozen=True)
class Scene:
    honest: Sequence[Swarm]
    adversary: Swarm
    rules: Rules

    async def spread(self, evil: Evil) -> list[bool]:
        """Store it at the adversary, and offer it to every honest node; say which of these took it."""
        key = DHTID.generate(source=evil.key)
        protocol = self.adversary._overlay.protocol
        protocol.storage.store_subkey(key, evil.subkey, evil.envelope, evil.expires_s)
        taken = []
        for node in self.honest:
            peer = PeerID.from_base58(node.peer_id)
            answer = await protocol.call_store(peer, [key], [evil.envelope], evil.expires_s, subkeys=[evil.subkey])
            taken.append(answer == [True])
        return taken

    async def assert_refused(self, kind: int, parts: Sequence[KeyPart], tries: Sequence[Evil], genuine: list[Record]):
        """Nobody stores what is tried, each for its reason, and a fresh reader sees the genuine records alone.

        All that is tried stands at the adversary at the same time: give each its own subkey.
        """
        assert len({(evil.key, evil.subkey) for evil in tries}) == len(tries), "or the reader would not meet them all"
        for node in self.honest:
            node.validator.refusals.clear()
        assert [await self.spread(evil) for evil in tries] == [[False] * len(self.honest)] * len(tries)
        wanted = Counter(evil.reason for evil in tries)
        async with self.fresh_reader() as reader:
            assert sorted(map(repr, await reader.fetch(kind, parts))) == sorted(map(repr, genuine))
            assert reader.validator.refusals >= wanted, "it met them all, and believed none"
        for node in self.honest:
            assert node.validator.refusals >= wanted
            held = {envelope for evil in tries for envelope in holds(node, evil.key).values()}
            assert not held & {evil.envelope for evil in tries}

    @contextlib.asynccontextmanager
    async def fresh_reader(self) -> AsyncIterator[Swarm]:
        """Join a reader that has never seen this swarm, through an honest node."""
        async with Swarm(Identity.ephemeral(), join=self.honest[0].join_code) as reader:
            assert reader.validator.rules == self.rules
            async with asyncio.timeout(10):
                await reader._membership.ensure(self.adversary.peer_id)
                await reader._overlay.join([self.adversary.peer_id])
            yield reader


@contextlib.asynccontextmanager
async def scene_of(rules: Rules = LASTING) -> AsyncIterator[Scene]:
    async with testnet(3, rules=rules) as (first, second, adversary):
        adversary.validator.why_not = lambda *_: None
        yield Scene((first, second), adversary, rules)


def holds(node: Swarm, key: bytes) -> dict[bytes, bytes]:
    """Say what stands under a key at one node: envelopes by subkey."""
    standing = node._overlay.protocol.storage.get(DHTID.generate(source=key))
    return {} if standing is None else {subkey: value for subkey, (value, _) in standing.value.items()}


def work(provider: Identity, consumer: Identity, rules: Rules = LASTING, **changes) -> Receipt:
    """A receipt of the epoch that runs now, unless ``changes`` say otherwise."""
    now = int(time.time())
    now_fields = {"epoch": rules.epoch_of(now), "t_first": now, "t_last": now}
    return receipt(provider, consumer, **(now_fields | changes))


def cosigned(made: Receipt, provider: Identity, consumer: Identity, rules: Rules = LASTING) -> SignedRecord:
    return seal(made, provider, consumer, rules=rules)


def evil_with(signed: SignedRecord, reason: str, **changes) -> Evil:
    """What is stored in place of a good record."""
    evil = Evil(reason, signed.key, signed.subkey, signed.envelope, float(signed.expires_s))
    return replace(evil, **changes)


def enveloped(made: Record, signatures: Sequence[bytes], reason: str, rules: Rules = LASTING) -> Evil:
    """A body with these signatures, where it would belong."""
    placed = place(made, Envelope(made.KIND, made.to_body(), tuple(signatures)).to_bytes(), rules)
    return evil_with(placed, reason)
