"""Round trips are measured some at a time, kept for a while, and who does not answer is reported."""

import asyncio
import random

import pytest

from dht.errors import DaemonDied, PeerUnreachable
from node.client.pings import KEPT_S, MAX_AT_ONCE, MAX_ROUND, Pings


class Peers:
    """Answers pings with the times in ``round_trips``, in s; others do not answer."""

    def __init__(self, **round_trips):
        self.round_trips, self.asked, self.gone = round_trips, [], []
        self.at_once = self.most_at_once = 0
        self.error = PeerUnreachable("no answer")
        self.pings = Pings(self.ping, lambda peer, _: self.gone.append(peer), random.Random(0))

    async def ping(self, peer):
        self.asked.append(peer)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if peer not in self.round_trips:
            raise self.error
        outcome = self.round_trips[peer]
        return outcome.pop(0) if isinstance(outcome, list) else outcome

    async def measure(self, *peers):
        self.pings.begin(peers)
        await self.pings.wait(5.0)
        return self.pings.known_us(asyncio.get_running_loop().time())


async def test_the_shorter_of_two_round_trips_is_kept():
    assert await Peers(a=[0.2, 0.003], b=[0.001, 0.1]).measure("a", "b") == {"a": 3000, "b": 1000}


async def test_who_does_not_answer_is_reported_once_and_not_known():
    peers = Peers(a=0.001)
    assert await peers.measure("a", "dead") == {"a": 1000}
    assert peers.gone == ["dead"]


async def test_our_own_p2pd_s_end_is_nobody_s_fault():
    peers = Peers()
    peers.error = DaemonDied("ended")
    assert await peers.measure("a") == {}
    assert peers.gone == []


async def test_what_is_known_is_not_asked_again_until_it_is_old():
    peers = Peers(a=0.001)
    known = await peers.measure("a")
    peers.asked.clear()
    assert await peers.measure("a") == known
    assert peers.asked == []
    assert peers.pings.known_us(asyncio.get_running_loop().time() + KEPT_S) == {}


async def test_of_many_some_are_asked_a_few_at_once_and_the_rest_later():
    names = [f"p{number}" for number in range(2 * MAX_ROUND + 5)]
    peers = Peers(**dict.fromkeys(names, 0.001))
    sizes = [len(await peers.measure(*names)) for _ in range(3)]
    assert sizes == [MAX_ROUND, 2 * MAX_ROUND, len(names)]
    assert peers.most_at_once == MAX_AT_ONCE


async def test_a_round_does_not_hold_up_whoever_waits_and_ends_with_its_owner():
    silent = asyncio.Event()

    async def ping(peer):
        await silent.wait()

    pings = Pings(ping, pytest.fail, random.Random(0))
    pings.begin(["a"])
    began_s = asyncio.get_running_loop().time()
    await pings.wait(0.05)
    assert asyncio.get_running_loop().time() - began_s < 1.0
    await pings.close()
    assert pings._round.cancelled()
