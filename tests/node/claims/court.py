"""Real nodes on loopback that hold a trial: an accused, an accuser, others that hold the blocks, and anchors.

The nodes' clock is set to an epoch that has passed and put on by hand, so that a trial of hours takes as long as the
nodes need to read and to sign. Whether work was right is what the examiners are told.
"""

import asyncio
import contextlib
import time

from dht.ident import Ident, Role
from dht.records import seal
from dht.rules import Rules
from dht.testnet import testnet
from node.claims.accuser import Accusation
from node.claims.findings import Finding
from node.claims.keeping import ClaimsKeeping
from tests.dht.receipts.made import sealed
from tests.node.check.session import PROFILE, held

RULES = Rules(window_epochs=6, evidence_epochs=12)
UNIT_S = RULES.epoch_s // 12
BIG = {"amount": 4096, "work": 4 * 4096, "manifest": bytes(32), "profile": PROFILE}


class Clock:
    """Unix seconds, by hand; a trial is counted from when it was made."""

    def __init__(self):
        self.epoch = RULES.epoch_of(time.time()) - 3
        self.began_s = RULES.start_of(self.epoch) + 100
        self.now_s = float(self.began_s)

    def __call__(self):
        return self.now_s

    def at(self, units):
        self.now_s = self.began_s + units * UNIT_S


class Court:
    """Anchors, an accused, an accuser and some more that hold the blocks."""

    def __init__(self, swarms, clock, home, num_anchors):
        self.clock = clock
        self.anchors, (self.accused, self.accuser, *self.jurors) = swarms[:num_anchors], swarms[num_anchors:]
        self.anchor = self.anchors[0]
        self.home = home
        self.opinions = {}
        self.nodes = {}

    async def enter(self, swarm, exits):
        def examine(evidence, claim):
            return Finding(self.opinions[swarm.peer_id], 400_000, "It is what the test says.")

        home = self.home / swarm.peer_id
        home.mkdir(exist_ok=True)
        node = ClaimsKeeping(home, swarm, swarm._identity, examine, clock=self.clock)
        self.nodes[swarm.peer_id] = await node.__aenter__()
        exits.append(node)

    async def turn(self, *swarms, units):
        """Let these nodes take a turn; what they examine is done by its end."""
        self.clock.at(units)
        for swarm in swarms:
            node = self.nodes[swarm.peer_id]
            await node.turn(RULES)
            await node.desk.settle()

    async def outcomes(self, swarm=None):
        """What one comes to: the anchor, if nobody else is named."""
        return (await self.nodes[(swarm or self.anchor).peer_id].board.refresh()).outcomes

    def trust(self, swarm, *anchors):
        """Let a node believe these anchors."""
        self.nodes[swarm.peer_id].board._anchors = tuple(each.peer_id for each in anchors)


@contextlib.asynccontextmanager
async def sitting(home, *, num_anchors=1, num_jurors=2):
    """Bring them together, each with a node that has a part in trials."""
    clock = Clock()
    async with testnet(num_anchors + 2 + num_jurors, rules=RULES) as swarms:
        await asyncio.gather(*(swarm.wait_for_rules(10) for swarm in swarms))
        court = Court(swarms, clock, home, num_anchors)
        ago = RULES.epoch_of(time.time()) - clock.epoch + 1
        for swarm in swarms:
            who = seal(Ident(swarm.peer_id, clock.epoch, clock.epoch, 0, Role.SERVER, ""), swarm._identity, rules=RULES)
            assert await swarm.store(who)
        for swarm in (court.accused, *court.jurors):
            assert await swarm.store(sealed(swarm._identity, swarms[0]._identity, RULES, epochs_ago=ago, **BIG))
        exits = []
        try:
            for swarm in swarms:
                await court.enter(swarm, exits)
                court.trust(swarm, *court.anchors)
            yield court
        finally:
            for node in exits:
                await node.__aexit__()


def accusation(court):
    session = held(provider=court.accused._identity, epoch=court.clock.epoch)
    body = session.receipt.to_body()
    signature = court.accused._identity.sign(type(session.receipt).KIND, body)
    return Accusation(session.evidence, session.offer.session, body, signature, 500_000)
