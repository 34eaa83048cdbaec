"""A court of real nodes for whoever asks for it."""

import asyncio
import time

import pytest

from dht.ident import Ident, Role
from dht.records import seal
from dht.testnet import testnet
from tests.dht.receipts.made import sealed
from tests.node.claims.court import BIG, RULES, Clock, Court


@pytest.fixture
async def court(tmp_path):
    clock = Clock()
    async with testnet(5, rules=RULES) as swarms:
        anchor = swarms[0].peer_id
        await asyncio.gather(*(swarm.wait_for_rules(10) for swarm in swarms))
        court = Court(swarms, clock, tmp_path)
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
                court.nodes[swarm.peer_id].board._anchors = (anchor,)
            yield court
        finally:
            for node in exits:
                await node.__aexit__()
