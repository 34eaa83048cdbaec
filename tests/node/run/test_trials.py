"""A node takes part in trials by what it can tell now."""

import pytest

from dht.identity import Identity
from dht.swarm import Swarm
from dht.verdict import Opinion
from node.calibrations.current import Current
from node.claims.findings import Finding, cannot_tell
from node.run.trials import trials, without_weights
from tests.node.check.figures import calibration


@pytest.mark.parametrize("opinion", list(Opinion))
async def test_what_could_not_be_told_before_a_calibration_came_is_examined_again(tmp_path, opinion):
    identity, current = Identity.ephemeral(), Current()
    found = cannot_tell("no calibration") if opinion is Opinion.INCONCLUSIVE else Finding(opinion, 1, "so it is")
    async with (
        Swarm(identity) as swarm,
        trials(tmp_path, None, swarm, identity, without_weights, current=current) as keeping,
    ):
        keeping.desk._findings[bytes(32)] = found
        current.use(calibration())
        assert keeping.desk.finding(bytes(32)) == (None if opinion is Opinion.INCONCLUSIVE else found)
