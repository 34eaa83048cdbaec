"""What a server's network carries is the best of what members say, and never more than its donor allows."""

import math

import pytest

from dht.errors import DaemonDied, PeerUnreachable
from node.run.network_rate import carried_tokens_per_s, measure_network


class FakeSwarm:
    """Members that answer with a rate, or fail."""

    def __init__(self, *answers) -> None:
        self.answers = dict(enumerate(answers))
        self.asked = []

    def members(self):
        return list(self.answers)

    async def measure_speed(self, peer):
        self.asked.append(peer)
        if isinstance(self.answers[peer], Exception):
            raise self.answers[peer]
        return self.answers[peer]


async def test_the_best_answer_of_a_few_counts():
    swarm = FakeSwarm(PeerUnreachable("busy"), 5.0, 7.0, 100.0)
    assert await measure_network(swarm, None) == 7.0
    assert swarm.asked == [0, 1, 2]


@pytest.mark.parametrize("answers", [(), (PeerUnreachable("busy"),)])
async def test_without_an_answer_nothing_is_known(answers):
    assert await measure_network(FakeSwarm(*answers), None) is None


async def test_nothing_is_sent_where_the_donor_bounds_what_is():
    swarm = FakeSwarm(5.0)
    assert await measure_network(swarm, 1000.0) is None
    assert swarm.asked == []


async def test_a_dead_p2pd_is_not_taken_for_a_silent_member():
    with pytest.raises(DaemonDied):
        await measure_network(FakeSwarm(DaemonDied("gone")), None)


@pytest.mark.parametrize(
    ("measured", "allowed", "tokens_per_s"),
    [(None, None, math.inf), (1000, None, 10), (None, 1000, 5), (1000, 4000, 10), (1000, 1000, 5)],
)
def test_a_token_comes_in_and_goes_out(measured, allowed, tokens_per_s):
    assert carried_tokens_per_s(measured, allowed, 100) == tokens_per_s
