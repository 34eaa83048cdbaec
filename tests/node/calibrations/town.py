"""A swarm of real nodes on loopback, in this process, with anchors, and one that looks for a calibration."""

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from hashlib import sha256

from dht.calibration import Calibration as CalibrationRecord
from dht.identity import Identity
from dht.records import Kind, seal
from dht.rules import Rules
from dht.swarm import Swarm
from dht.testnet import found
from node.calibrations.current import Current
from node.calibrations.seeker import CALIBRATION_PROTOCOL, CALIBRATIONS, CalibrationSeeker
from node.check.calibration import encode_calibration
from node.handout import Handout
from tests.dht.test_audit import ROW
from tests.node.check.figures import calibration

MADE = calibration()
DATA = encode_calibration(MADE)
OTHER = calibration(mean=0.02)
RULES = Rules()


class Town:
    """A founder, two anchors beside it, and a node that looks for a calibration."""

    def __init__(self, founder, anchors, seeking, swarms, home):
        self.founder, self.anchors, self.seeking, self.home = founder, anchors, seeking, home
        self.swarms = swarms
        self.told = []
        self.current = Current()
        self.seeker = self.another()

    def another(self, **changes):
        return CalibrationSeeker(
            self.swarms[self.seeking],
            MADE.manifest,
            self.current,
            self.home,
            tell=self.told.append,
            chance=random.Random(0),
            **changes,
        )

    async def name(self, signer, data, **changes):
        """Publish a record of some bytes."""
        now_s = time.time()
        record = CalibrationRecord(
            MADE.manifest,
            signer.peer_id,
            RULES.epoch_of(now_s),
            1,
            sha256(data).digest(),
            len(data),
            (ROW,),
            int(now_s),
        )
        swarm = self.swarms[signer]
        assert await swarm.store(seal(replace(record, **changes), signer, rules=RULES))

    async def hand_out(self, node, *files):
        by_name = {sha256(data).digest(): data for data in files}
        await Handout(CALIBRATION_PROTOCOL, by_name.get).start(self.swarms[node])

    async def look(self):
        return await self.seeker.look(RULES)

    async def standing(self):
        """Return the records of the model that stand."""
        read = await self.swarms[self.founder].fetch(Kind.CALIBRATION, (MADE.manifest,))
        return [record for record in read if isinstance(record, CalibrationRecord)]

    @property
    def kept(self):
        folder = self.home / CALIBRATIONS
        return [path.read_bytes() for path in folder.iterdir()] if folder.exists() else []


@contextlib.asynccontextmanager
async def town_of(home):
    founder, one, two, seeking = identities = [Identity.ephemeral() for _ in range(4)]
    founded = found(founder, "town", RULES, anchors=[each.peer_id for each in (founder, one, two)])
    async with Swarm(founder, name="town", parameters=founded.envelope) as first:
        await first.store(founded)
        others = [Swarm(each, join=first.join_code) for each in identities[1:]]
        await asyncio.gather(*(each.__aenter__() for each in others))
        try:
            await asyncio.gather(*(each.wait_for_rules(10) for each in others))
            swarms = dict(zip(identities, [first, *others], strict=True))
            yield Town(founder, (one, two), seeking, swarms, home)
        finally:
            await asyncio.gather(*(each.__aexit__(None, None, None) for each in others))
