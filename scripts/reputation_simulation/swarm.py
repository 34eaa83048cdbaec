"""Run a swarm with liars in it for some weeks, epoch by epoch. Seeded; no clock."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

from dht.claim import MAX_CLAIMS
from dht.reputation import Scores
from dht.standing.ranks import Rank, rank_of
from reputation_simulation.attacks import ATTACKS, FIRST_SLANDER
from reputation_simulation.book import Book, Node
from reputation_simulation.courts import Claim, Courts
from reputation_simulation.rules import AftRule, Pool, Rule
from reputation_simulation.settings import Settings

FAKED_UNITS = 1000
"""Units that a liar signs for a friend, who has done nothing, in an epoch."""

FAKED_FRIENDS = 6
"""Friends for whom it does so."""

CAUGHT = 1
"""Under rules without courts, a whitewasher leaves its identity when so many audits have failed it."""


@dataclass
class Epoch:
    """What is counted of one epoch: requests of honest clients."""

    served: int = 0
    bad: int = 0
    duplicates: int = 0
    claims: int = 0
    votes: int = 0
    anchor_appeals: int = 0
    traffic: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By server, live requests."""


class Swarm:
    """One run."""

    def __init__(self, settings: Settings, attack: str, rule: Rule, seed: int) -> None:
        self.settings, self.rule = settings, rule
        self.rng = random.Random(seed)  # noqa: S311 - not for secrets
        self.book = Book()
        self.courts = Courts(settings, self.rng)
        self.nodes = self._first_nodes(attack)
        self.anchors = tuple(node.name for node in self.nodes if node.is_anchor)
        self.epochs: list[Epoch] = []
        self._accused: defaultdict[Node, dict[str, Claim]] = defaultdict(dict)
        """In this epoch, by accuser and accused, in the order in which it was found."""
        self._checked: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._since: dict[str, int] = {}
        self._num_reborn = 0

    def _first_nodes(self, attack: str) -> list[Node]:
        """Make all but those who take new identities: anchors first, then honest ones, liars, and who comes later."""
        settings, kinds = self.settings, ATTACKS[attack]
        num_liars = round(settings.malicious * settings.num_nodes)
        num_honest = settings.num_nodes - num_liars
        nodes = [Node(f"node {number:03}", number % settings.num_ranges, 0) for number in range(num_honest)]
        for number, node in enumerate(nodes[: settings.num_anchors]):
            node.is_anchor = True
            node.behaviour = kinds[number % len(kinds)] if number < settings.num_bad_anchors else None
        for number in range(num_liars):
            place = (number // len(kinds)) % settings.num_ranges
            nodes.append(Node(f"liar {number:03}", place, settings.malicious_epoch, kinds[number % len(kinds)]))
        nodes += [
            Node(f"later {number:02}", number % settings.num_ranges, settings.newcomers_epoch)
            for number in range(settings.num_newcomers)
        ]
        for node in nodes:
            node.is_alive = node.joined == 0
        return nodes

    def run(self) -> list[Epoch]:
        """Let all epochs pass."""
        for _ in range(self.settings.num_epochs):
            self._step()
        return self.epochs

    def _step(self) -> None:
        epoch = self.book.epoch
        for node in self.nodes:
            node.is_alive = node.is_alive or node.joined == epoch
        if epoch == self.settings.new_anchors_epoch:
            self._replace_anchors()
        pools = self.rule.pools(self.book, self.nodes, self.anchors, self.settings)
        for node in (node for pool in pools for node in pool.live):
            self._since.setdefault(node.name, epoch)
        count = Epoch()
        self.epochs.append(count)
        alive = [node for node in self.nodes if node.is_alive]
        self._requests(alive, pools, count)
        self._canaries(alive, pools)
        self._lies(alive)
        self._judge(count)
        self._rejoin()
        self.book.end_epoch()

    def _requests(self, alive: list[Node], pools: list[Pool], count: Epoch) -> None:
        rng, settings = self.rng, self.settings
        asking: list[list[Node]] = [[] for _ in pools]
        for node in alive:
            for place in rng.choices(range(settings.num_ranges), k=settings.requests // settings.session):
                asking[place].append(node)
        for clients, pool in zip(asking, pools, strict=True):
            if not pool.live:
                continue
            servers = rng.choices(pool.live, cum_weights=pool.cumulated, k=len(clients))
            for client, server in zip(clients, servers, strict=True):
                if client is not server:
                    for _ in range(settings.session):
                        self._request(client, server, pool, count)

    def _request(self, client: Node, server: Node, pool: Pool, count: Epoch) -> None:
        rng, settings = self.rng, self.settings
        is_bad = self._serve(client, server)
        if client.is_honest:
            count.served += 1
            count.bad += is_bad
            count.traffic[server.name] += 1
            if rng.random() < self._audit_rate(server):
                self._audit(client, server, is_bad)
        if pool.shadow and rng.random() < settings.shadow_rate:
            self._duplicate(client, rng.choice(pool.shadow), count)

    def _audit_rate(self, server: Node) -> float:
        """Give the share of requests to a server that is audited."""
        settings = self.settings
        is_fresh = self.book.epoch - self._since.get(server.name, 0) < settings.fresh_epochs
        return settings.fresh_audit_rate if is_fresh and settings.fresh_audit_rate else settings.audit_rate

    def _duplicate(self, client: Node, newcomer: Node, count: Epoch) -> None:
        """Give a newcomer a request that another one has answered, and compare."""
        if newcomer is client:
            return
        is_bad = self._serve(client, newcomer)
        if client.is_honest:
            count.duplicates += 1
            self._audit(client, newcomer, is_bad)

    def _serve(self, client: Node, server: Node) -> bool:
        """Sign for a request; say whether its output is bad."""
        self.book.work(client, server)
        behaviour = server.behaviour
        return behaviour is not None and self.rng.random() < behaviour.cheat_rate(self.book.epoch)

    def _audit(self, auditor: Node, server: Node, is_bad: bool, *, is_canary: bool = False) -> None:
        settings = self.settings
        if self.rng.random() >= (settings.power if is_bad else settings.false_positives):
            self.book.passed(auditor, server)
            return
        self.book.fails(auditor, server)
        if (is_canary or not settings.anchors_verify) and not self._is_spared(auditor, server):
            self._accuse(auditor, server, is_bad)

    def _is_spared(self, accuser: Node, accused: Node) -> bool:
        """Whether one has a claim against it that is open, or it gets no work any more."""
        scores = self.rule.scores if isinstance(self.rule, AftRule) else None
        is_out = scores is not None and rank_of(scores, accused.name) is Rank.CONVICTED
        return is_out or (accuser.name, accused.name) in self.book.on_trial

    def _accuse(self, accuser: Node, accused: Node, is_true: bool) -> None:
        """Hold a claim; of those that one holds some are made."""
        if self.rule.has_courts:
            self._accused[accuser].setdefault(accused.name, Claim(accuser, accused, is_true))

    def _made(self, scores: Scores) -> list[Claim]:
        """Choose as many claims of each accuser as one may make: newcomers, who throw their names away, come last."""

        def is_newcomer(claim: Claim) -> bool:
            return scores.standing(claim.accused.name).is_newcomer

        return [
            claim for held in self._accused.values() for claim in sorted(held.values(), key=is_newcomer)[:MAX_CLAIMS]
        ]

    def _canaries(self, alive: list[Node], pools: list[Pool]) -> None:
        settings = self.settings
        for node in alive:
            if node.is_honest and (node.name in self.anchors or not settings.anchors_verify):
                for _ in range(settings.canaries):
                    for pool in pools if settings.anchors_verify else [self.rng.choice(pools)]:
                        self._canary(node, [other for other in (*pool.live, *pool.shadow) if other is not node])

    def _canary(self, verifier: Node, servers: list[Node]) -> None:
        """Run a session through one server: the least recently checked one, where verifiers do nothing else."""
        if not servers:
            return
        server = self.rng.choice(servers)
        if self.settings.anchors_verify:
            server = min(servers, key=lambda one: (self._checked[verifier.name, one.name], self.rng.random()))
            self._checked[verifier.name, server.name] = self.book.epoch + 1
        for _ in range(self.settings.canary_requests):
            self._audit(verifier, server, self._serve(verifier, server), is_canary=True)

    def _lies(self, alive: list[Node]) -> None:
        """Let liars sign for each other and accuse others."""
        epoch = self.book.epoch
        honest = [node for node in alive if node.is_honest]
        friends = [node for node in alive if node.behaviour is not None and node.behaviour.vouches]
        for node in alive:
            behaviour = node.behaviour
            if behaviour is None:
                continue
            if behaviour.vouches:
                for friend in self.rng.sample(friends, min(FAKED_FRIENDS, len(friends))):
                    if friend is not node:
                        self.book.work(node, friend, FAKED_UNITS)
                        self.book.passed(node, friend)
            if behaviour.slanders and epoch >= FIRST_SLANDER:
                for victim in self.rng.sample(honest, min(len(honest), MAX_CLAIMS)):
                    self.book.fails(node, victim)
                    self._accuse(node, victim, is_true=False)

    def _judge(self, count: Epoch) -> None:
        courts = self.courts
        before = len(courts.cases), courts.num_votes, courts.num_anchor_appeals
        if isinstance(self.rule, AftRule) and self.rule.scores is not None:
            courts.judge(self._made(self.rule.scores), self.book, self.nodes, self.rule.scores)
        count.claims = len(courts.cases) - before[0]
        count.votes, count.anchor_appeals = courts.num_votes - before[1], courts.num_anchor_appeals - before[2]
        self._accused.clear()

    def _rejoin(self) -> None:
        convicted = {one.peer for one in self.book.convictions}
        for node in list(self.nodes):
            if node.is_alive and node.behaviour is not None and node.behaviour.rejoins:
                fails = self.book.audited[node.name].fails
                if node.name in convicted if self.rule.has_courts else fails >= CAUGHT:
                    node.is_alive = False
                    self._num_reborn += 1
                    name = f"reborn {self._num_reborn:04}"
                    self.nodes.append(Node(name, node.range, self.book.epoch + 1, node.behaviour, is_alive=False))

    def _replace_anchors(self) -> None:
        """Let users name other anchors: honest ones, who then decide what the old ones had decided."""
        chosen = [node for node in self.nodes if node.is_honest and not node.is_anchor]
        chosen = chosen[: self.settings.num_anchors]
        self.anchors = tuple(node.name for node in chosen)
        self.courts.reopen(self.book, chosen)
