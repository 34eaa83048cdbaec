"""Let more be asked of servers than they can do, and count who is served: in order of arrival, or by the ratio rule.

Each server does one request in a tick and holds those that wait; clients see two queues and take the one in which fewer
stand before them, and who has waited too long goes. Receipts of the epochs
before decide about priority, as ``dht.reputation.priority`` has it. Seeded; no clock.

Nothing is left idle for anybody's sake: those who come last get what the others leave. So what free riders get is also
a matter of how much contributors ask for.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dht.reputation import DEFAULT_SCORE_RULES, priority
from reputation_simulation.settings import UNIT

WINDOW = DEFAULT_SCORE_RULES.window_epochs


@dataclass(frozen=True)
class Group:
    """Consumers of one kind."""

    name: str
    num: int
    serves: bool
    demand: float  # requests, over what one server can do
    renames: bool = False  # takes a new identity in every epoch


LIGHT = Group("light contributors", 50, True, 0.6)
HEAVY = Group("heavy contributors", 50, True, 1.24)
RIDERS = Group("free riders", 19, False, 3.0)
RENAMING = replace(RIDERS, renames=True)
"""92 of the capacity of 100 is asked for by those who serve, 57 by those who do not: 1.49 times what there is."""


@dataclass(eq=False)
class Consumer:
    """Who asks."""

    group: Group
    name: str


@dataclass
class Account:
    """What receipts say of one name, by epoch, requests."""

    provided: deque[int]
    consumed: deque[int]


Entry = tuple[int, float, int, Consumer]
"""Who waits: rank, the least is served first; a random number for those of one rank; since which tick; who."""


class Queues:
    """The servers of a swarm under load."""

    def __init__(self, by_ratio: bool, riders: Group, seed: int, ticks: int = 30, patience: int = 15) -> None:
        self.groups = (LIGHT, HEAVY, riders)
        self.by_ratio, self.ticks, self.patience = by_ratio, ticks, patience
        self.rng = random.Random(seed)  # noqa: S311 - not for secrets
        self.consumers = [Consumer(group, f"{group.name} {n}") for group in self.groups for n in range(group.num)]
        self.servers = [consumer for consumer in self.consumers if consumer.group.serves]
        self.accounts: defaultdict[str, Account] = defaultdict(lambda: Account(_window(), _window()))
        self.waiting: list[list[Entry]] = [[] for _ in self.servers]
        self.asked: defaultdict[str, int] = defaultdict(int)
        self.served: defaultdict[str, int] = defaultdict(int)

    def run(self, num_epochs: int, counted: int) -> dict[str, float]:
        """Give by group what share of its demand was served in the last ``counted`` epochs."""
        for epoch in range(num_epochs):
            if epoch == num_epochs - counted:
                self.asked.clear()
                self.served.clear()
            self._epoch(epoch)
        return {group.name: self.served[group.name] / self.asked[group.name] for group in self.groups}

    def _epoch(self, epoch: int) -> None:
        for consumer in self.consumers:
            if consumer.group.renames:
                consumer.name = f"{consumer.group.name} {self.rng.random()}"
        priorities = {consumer: self._priority(consumer) for consumer in self.consumers}
        arrivals: list[list[Consumer]] = [[] for _ in range(self.ticks)]
        for consumer in self.consumers:
            for _ in range(round(consumer.group.demand * self.ticks)):
                self.rng.choice(arrivals).append(consumer)
        provided: defaultdict[str, int] = defaultdict(int)
        consumed: defaultdict[str, int] = defaultdict(int)
        for tick, clients in enumerate(arrivals, epoch * self.ticks):
            self.rng.shuffle(clients)
            for client in clients:
                self.asked[client.group.name] += 1
                rank = -priorities[client] if self.by_ratio else tick
                entry = (rank, self.rng.random(), tick, client)
                one, other = self.rng.sample(self.waiting, 2)
                (one if _num_before(entry, one) <= _num_before(entry, other) else other).append(entry)
            for server, queue in zip(self.servers, self.waiting, strict=True):
                queue[:] = [entry for entry in queue if tick - entry[2] < self.patience]
                if queue:
                    first = min(queue, key=_rank)
                    queue.remove(first)
                    self.served[first[3].group.name] += 1
                    provided[server.name] += 1
                    consumed[first[3].name] += 1
        for consumer in self.consumers:
            account = self.accounts[consumer.name]
            account.provided.append(provided[consumer.name])
            account.consumed.append(consumed[consumer.name])

    def _priority(self, consumer: Consumer) -> int:
        account = self.accounts[consumer.name]
        provided, consumed = sum(account.provided), sum(account.consumed)
        return priority(provided * UNIT, consumed * UNIT)


def _window() -> deque[int]:
    return deque(maxlen=WINDOW)


def _rank(entry: Entry) -> tuple[int, float]:
    return entry[:2]


def _num_before(entry: Entry, queue: Sequence[Entry]) -> int:
    """Count who would be served first."""
    return sum(other[0] <= entry[0] for other in queue)
