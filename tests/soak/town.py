"""A swarm of light nodes that work for one another while many of them die: real members of a real DHT, no models.

In every epoch pairs of nodes are drawn; each pair's receipt grows twice, and its provider publishes it each time, and
once more what was not taken when the epoch has ended. Some nodes are killed without a word at random moments, and fresh
ones take their places. What is to be found in the end: whatever was made by a provider that still lives then, whether
or not anybody took it; of one that was killed, what enough members had taken from it. Everything runs in the caller's
event loop, beside one p2pd a node.
"""

import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from dht.errors import DhtError, PeerUnreachable, UnavailableError
from dht.ident import Ident, Role
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.receipts.publisher import ReceiptPublisher
from dht.receipts.reader import collect_receipts, known_providers
from dht.receipts.totals import Newest
from dht.records import SignedRecord, seal
from dht.rules import Rules
from dht.swarm import Swarm
from dht.work import Slot
from tests.dht.samples import receipt

STARTS_AT_ONCE = 3
JOINED_THROUGH = 3
JOIN_TRIES = 4


@dataclass(frozen=True)
class Plan:
    """How large the town is and how hard its life."""

    num_nodes: int
    num_pairs: int  # drawn anew in each epoch
    num_epochs: int
    epoch_s: int
    num_killed: int  # nodes of each epoch
    seed: int = 0

    @property
    def rules(self) -> Rules:
        return Rules(epoch_s=self.epoch_s, window_epochs=100 * self.num_epochs)


@dataclass
class Outcome:
    """What became of the receipts, and what that took of the nodes."""

    num_expected: int = 0  # receipts that are to be found
    num_of_living: int = 0  # of these, those that somebody made who lives to the end
    num_recovered: int = 0
    num_killed: int = 0
    num_sent_again: int = 0
    records_per_node: list[int] = field(default_factory=list)
    bytes_per_node: list[int] = field(default_factory=list)
    p2pd_bytes: list[int] = field(default_factory=list)
    own_bytes: int = 0  # of this process, all nodes in it
    lost: list[Slot] = field(default_factory=list)
    read_s: float = 0.0

    @property
    def recovered(self) -> float:
        return self.num_recovered / max(1, self.num_expected)


class _Memory:
    """A provider's receipts: what a ledger is to a node."""

    def __init__(self) -> None:
        self.newest: dict[Slot, SignedRecord] = {}
        self.num_changes = 0  # Who publishes is told when.

    async def newest_envelopes(self, since_epoch: int) -> list[bytes]:
        return [signed.envelope for slot, signed in self.newest.items() if slot.epoch >= since_epoch]


class Town:
    """The nodes that live now, and what was published."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.nodes: dict[Swarm, ReceiptPublisher] = {}
        self.memories: dict[Swarm, _Memory] = {}
        self.made: dict[Slot, int] = {}
        """The newest number of each slot."""
        self.published: dict[Slot, int] = {}
        """The same, of what enough members took."""
        self.outcome = Outcome()
        self._first = True

    async def start(self, count: int) -> None:
        waiting = iter(range(count))

        async def some() -> None:
            for _ in waiting:
                await self._start_one()

        if self._first:
            self._first = False
            next(waiting)
            await self._start_one()
        await asyncio.gather(*(some() for _ in range(STARTS_AT_ONCE)))

    def _join(self) -> JoinCode | None:
        met = self.rng.sample(list(self.nodes), min(JOINED_THROUGH, len(self.nodes)))
        return JoinCode(tuple(address for node in met for address in node.addresses), "town") if met else None

    async def _start_one(self) -> None:
        node = await self._entered()
        identity = node._identity
        self.memories[node] = _Memory()
        self.nodes[node] = ReceiptPublisher(node, self.memories[node])
        epoch = self.plan.rules.epoch_of(time.time())
        ident = Ident(identity.peer_id, epoch, epoch, 0, Role.SERVER, "")
        try:
            await node.store(seal(ident, identity, rules=self.plan.rules))
        except DhtError:
            if node in self.nodes:  # It was not killed meanwhile.
                raise

    async def _entered(self) -> Swarm:
        """Join as a user does: again, through others, where a busy machine has let it wait too long."""
        for _ in range(JOIN_TRIES):
            node = Swarm(Identity.ephemeral(), join=self._join(), name="town")
            node.validator.rules = self.plan.rules
            with contextlib.suppress(UnavailableError):
                await node.__aenter__()
                return node
        raise PeerUnreachable(f"nobody of the town has answered {JOIN_TRIES} times")

    async def kill_one(self) -> None:
        """Kill a node's p2pd without a word, then start a fresh node."""
        node = self.rng.choice(list(self.nodes))
        del self.nodes[node], self.memories[node]
        self.outcome.num_sent_again += node._keeper.num_sent
        os.kill(node._daemon.pid, signal.SIGKILL)
        with contextlib.suppress(DhtError, OSError):
            await node.__aexit__(None, None, None)
        self.outcome.num_killed += 1
        await self._start_one()

    async def work(self, provider: Swarm, consumer: Swarm, epoch: int, lane: int, moments: list[float]) -> None:
        """Let a pair's receipt grow, and be published, at some moments, as long as its provider lives."""
        rules = self.plan.rules
        began = rules.start_of(epoch)
        for seq, moment in enumerate(moments, 1):
            await asyncio.sleep(moment - time.time())
            if provider not in self.nodes:
                return
            made = receipt(
                provider._identity,
                consumer._identity,
                epoch=epoch,
                lane=lane,
                seq=seq,
                amount=64 * seq,
                work=256 * seq,
                t_first=began,
                t_last=began + self.plan.epoch_s,
            )
            signed = seal(made, provider._identity, consumer._identity, rules=rules)
            self.memories[provider].newest[made.slot] = signed
            self.made[made.slot] = seq
            with contextlib.suppress(DhtError, OSError, KeyError):
                publisher = self.nodes[provider]
                await publisher.publish()
                if publisher.published_seq(signed) >= seq:
                    self.published[made.slot] = seq

    async def live(self) -> None:
        """Live through all epochs."""
        rules, plan = self.plan.rules, self.plan
        epoch = 0
        for _ in range(plan.num_epochs):
            epoch = max(epoch, rules.epoch_of(time.time())) + 1  # a machine that lags skips epochs
            began = rules.start_of(epoch)
            await asyncio.sleep(max(0.0, began - time.time()))
            moments = sorted(began + self.rng.uniform(0.05, 0.9) * plan.epoch_s for _ in range(2 * plan.num_pairs))
            works = []
            for lane in range(plan.num_pairs):
                provider, consumer = self.rng.sample(list(self.nodes), 2)
                own = sorted(self.rng.sample(moments, 2))
                works.append(self.work(provider, consumer, epoch, lane, own))
            deaths = [began + self.rng.uniform(0.1, 0.9) * plan.epoch_s for _ in range(plan.num_killed)]
            await asyncio.gather(*works, *map(self._kill_at, deaths))
            await asyncio.gather(*map(self._publish_the_rest, list(self.nodes.values())))

    async def _publish_the_rest(self, publisher: ReceiptPublisher) -> None:
        """Publish again what too few have taken, as a publisher does by itself after an epoch's end."""
        with contextlib.suppress(DhtError, OSError):
            await publisher.publish()

    def _expected(self) -> dict[Slot, int]:
        """Say what is to be found: slots, and the least number of each."""
        living = {node._identity.peer_id for node in self.nodes}
        of_living = {slot: seq for slot, seq in self.made.items() if slot.provider in living}
        self.outcome.num_of_living = len(of_living)
        return self.published | of_living

    async def _kill_at(self, moment: float) -> None:
        await asyncio.sleep(moment - time.time())
        await self.kill_one()

    async def read(self) -> Outcome:
        """Let a newcomer, which stores nothing itself, read everything, and compare."""
        outcome, rules = self.outcome, self.plan.rules
        began = time.monotonic()
        reader = Swarm(Identity.ephemeral(), join=self._join(), client_mode=True)
        reader.validator.rules = rules
        async with reader:
            expected = self._expected()
            epochs = [slot.epoch for slot in expected]
            window = range(min(epochs), max(epochs) + 1)
            newest = Newest()
            providers = await known_providers(reader)
            async for signed in collect_receipts(reader, sorted(providers), window):
                newest.add(signed.record)
        found = {made.slot: made.seq for made in newest}
        outcome.read_s = round(time.monotonic() - began, 1)
        outcome.num_expected = len(expected)
        outcome.lost = [slot for slot, seq in expected.items() if found.get(slot, 0) < seq]
        outcome.num_recovered = outcome.num_expected - len(outcome.lost)
        self._weigh()
        return outcome

    def _weigh(self) -> None:
        for node in self.nodes:
            storage = node._overlay.protocol.storage
            records = [value for key in list(storage.data) for _, value, _ in storage.records(key)]
            self.outcome.num_sent_again += node._keeper.num_sent
            self.outcome.records_per_node.append(len(records))
            self.outcome.bytes_per_node.append(sum(map(len, records)))
            self.outcome.p2pd_bytes.append(_resident(node._daemon.pid))
        self.outcome.own_bytes = _resident(os.getpid())

    async def end(self) -> None:
        """End all nodes."""
        await asyncio.gather(*(node.__aexit__(None, None, None) for node in self.nodes))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def live_in_town(plan: Plan) -> Outcome:
    """Start a town, live through its epochs, read all that was published, and end it."""
    town = Town(plan)
    try:
        await town.start(plan.num_nodes)
        await town.live()
        return await town.read()
    finally:
        await town.end()
