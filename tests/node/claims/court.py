"""Nodes on loopback that hold trials, and their clock.

It is set to an epoch that has passed and put on by hand, so that a trial of hours takes as long as the nodes need to
read and to sign. Whether work was right is what the examiners here are told.
"""

import time

from dht.rules import Rules
from node.claims.accuser import Accusation
from node.claims.findings import Finding
from node.claims.keeping import ClaimsKeeping
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
    """An anchor, an accused, an accuser and two more that hold the blocks."""

    def __init__(self, swarms, clock, home):
        self.clock = clock
        self.anchor, self.accused, self.accuser, *self.jurors = swarms
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

    async def outcomes(self):
        """What one that has no part in it comes to."""
        return (await self.nodes[self.anchor.peer_id].board.refresh()).outcomes


def accusation(court):
    session = held(provider=court.accused._identity, epoch=court.clock.epoch)
    body = session.receipt.to_body()
    signature = court.accused._identity.sign(type(session.receipt).KIND, body)
    return Accusation(session.evidence, session.offer.session, body, signature, 500_000)
