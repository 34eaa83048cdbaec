"""Attack 33, the part of it that is about clocks: who is five minutes off does not join, and is told why."""

import re
import time

import pytest

from dht.errors import ClockSkew
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.swarm import Swarm


@pytest.mark.parametrize(("skew_s", "words"), [(300, "behind"), (-300, "ahead of")])
async def test_a_peer_whose_clock_is_five_minutes_off_does_not_join_and_is_told_what_to_do(skew_s, words):
    async with Swarm(Identity.ephemeral()) as bootstrap:
        bootstrap._membership._clock = lambda: time.time() + skew_s
        with pytest.raises(ClockSkew) as refused:
            await Swarm(Identity.ephemeral(), join=JoinCode(tuple(bootstrap.addresses))).__aenter__()
    said = str(refused.value)
    assert re.fullmatch(
        rf"this machine's clock is (299|300|301) s {words} the swarm's: set it, or let NTP do so", said
    ), said
