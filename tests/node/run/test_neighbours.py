"""A server knows how far those are that may come after it, and says nothing of others."""

import random

import pytest

from dht.errors import DaemonDied, PeerUnreachable
from dht.records import MAX_NEIGHBOURS, ServerState
from node.run.neighbours import Neighbours
from tests.node.client.announcements import server

OWN, SPAN = "own", (2, 4)


class Surroundings:
    """What a server sees: announcements, and round trips in s by peer; who has none does not answer."""

    def __init__(self, *servers, **round_trips):
        self.servers, self.round_trips = list(servers), round_trips
        self.pings = []

    async def ping(self, peer):
        self.pings.append(peer)
        if peer not in self.round_trips:
            raise PeerUnreachable("no answer")
        outcome = self.round_trips[peer]
        if isinstance(outcome, list):
            outcome = outcome.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def read(self):
        return self.servers

    def neighbours(self):
        return Neighbours(OWN, SPAN, self.ping, self.read, random.Random(1))


async def announced(surroundings):
    neighbours = surroundings.neighbours()
    await neighbours.refresh()
    return neighbours.announced


@pytest.mark.parametrize(
    ("start", "end", "follows"), [(4, 6, True), (0, 5, True), (3, 8, True), (5, 8, False), (0, 4, False)]
)
async def test_only_those_whose_blocks_go_on_where_ours_end_are_asked(start, end, follows):
    around = Surroundings(server("a", start, end), a=0.001)
    assert await announced(around) == ((("a", 1000),) if follows else ())
    assert bool(around.pings) == follows


async def test_neither_ourselves_nor_those_that_take_no_sessions_are_asked():
    states = [state for state in ServerState if state is not ServerState.ONLINE]
    resting = [server(f"peer{state}", 4, 6, state=state) for state in states]
    around = Surroundings(server(OWN, 0, 8), *resting, **{OWN: 0.1}, **{entry.owner: 0.1 for entry in resting})
    assert await announced(around) == ()


async def test_the_middle_of_three_round_trips_counts():
    assert await announced(Surroundings(server("a", 4, 6), a=[0.2, 0.003, 0.004])) == (("a", 4000),)


async def test_who_does_not_answer_is_left_out_and_so_is_who_has_gone():
    around = Surroundings(server("a", 4, 6), server("b", 4, 6), a=0.001)
    neighbours = around.neighbours()
    await neighbours.refresh()
    assert neighbours.announced == (("a", 1000),)
    around.round_trips = {"b": 0.002}
    await neighbours.refresh()
    assert neighbours.announced == (("b", 2000),)
    around.servers.clear()
    await neighbours.refresh()
    assert neighbours.announced == ()


async def test_of_many_the_nearest_are_announced_and_all_are_found_in_time():
    servers = [server(f"p{number:02}", 4, 6) for number in range(60)]
    around = Surroundings(*servers, **{entry.owner: 0.001 * (1 + at) for at, entry in enumerate(servers)})
    neighbours = around.neighbours()
    for _ in range(40):
        around.pings.clear()
        await neighbours.refresh()
        assert len(set(around.pings)) <= 24
        assert len(neighbours.announced) <= MAX_NEIGHBOURS
    assert [peer for peer, _ in neighbours.announced] == [entry.owner for entry in servers[:MAX_NEIGHBOURS]]


async def test_our_own_p2pd_s_end_is_not_the_neighbour_s():
    with pytest.raises(DaemonDied):
        await announced(Surroundings(server("a", 4, 6), a=DaemonDied("ended")))
