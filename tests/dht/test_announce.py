import asyncio
import os
import signal
import time
from dataclasses import replace

from dht.announce import Announcer
from dht.directory import read_directory
from dht.records import Announcement, Kind, ServerState
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.samples import MANIFEST, announcement


def offers(node: Swarm, end: int = 4):
    def make(t: int, life_s: int) -> list[Announcement]:
        return [replace(announcement(node._identity, t=t, end=end), life_s=life_s)]

    return make


async def seen(node: Swarm) -> list[Announcement]:
    return list((await read_directory(node, MANIFEST, time.time())).servers)


async def test_an_announcement_outlives_its_life_while_it_is_refreshed_and_no_longer():
    async with testnet(3) as nodes:
        announcer = Announcer(nodes[1], nodes[1]._identity, offers(nodes[1]), refresh_s=1)
        async with announcer:
            first = (await seen(nodes[2]))[0]
            assert first.life_s == 3
            await asyncio.sleep(3.3)
            later = (await seen(nodes[2]))[0]
            assert later.t >= first.t + 3
            announcer._task.cancel()  # as if the node had been killed: no goodbye
            await asyncio.sleep(4.2 - (time.time() - later.t))
            assert await seen(nodes[2]) == [] or (await seen(nodes[2]))[0].t > later.t
            await asyncio.sleep(1)
            assert await seen(nodes[2]) == []


async def test_updates_in_quick_succession_all_arrive_in_order():
    async with testnet(2) as (reader, node):
        span = [4]

        def make(t: int, life_s: int) -> list[Announcement]:
            return offers(node, end=span[0])(t, life_s)

        async with Announcer(node, node._identity, make) as announcer:
            for end in range(5, 10):
                span[0] = end
                assert await announcer.update()
                assert [server.end for server in await seen(reader)] == [end]


async def test_a_withdrawal_is_a_tombstone_that_an_older_copy_cannot_undo():
    async with testnet(3) as nodes:
        async with Announcer(nodes[1], nodes[1]._identity, offers(nodes[1])) as announcer:
            (said,) = announcer._said.values()
        (stone,) = await nodes[2].fetch(Kind.ANNOUNCE, (MANIFEST, 0))
        assert stone.state == ServerState.OFFLINE
        assert stone.t + stone.life_s > said.expires_s
        await nodes[0].store(said)  # anyone may store the old copy again, and a node that missed the tombstone takes it
        for node in nodes:
            assert await seen(node) == []


async def test_a_server_that_comes_back_at_once_is_seen_at_once():
    async with testnet(2) as (reader, node):
        for _ in range(3):
            async with Announcer(node, node._identity, offers(node)):
                assert len(await seen(reader)) == 1
            assert await seen(reader) == []


async def test_leaving_is_quick_when_p2pd_has_died():
    async with testnet(2) as (_, node):
        async with Announcer(node, node._identity, offers(node)):
            os.kill(node._daemon.pid, signal.SIGKILL)
            await asyncio.sleep(0.1)
            started = time.monotonic()
        assert time.monotonic() - started < 4


async def test_a_clock_that_was_ahead_and_is_set_right_silences_nobody():
    offset_s = [3600.0]
    async with testnet(2) as (reader, node):
        announcer = Announcer(node, node._identity, offers(node), clock=lambda: time.time() + offset_s[0])
        async with announcer:
            assert await seen(reader) == [], "nobody believes what is said from the future"
            offset_s[0] = 0.0
            async with asyncio.timeout(5):
                assert await announcer.update()
            assert abs((await seen(reader))[0].t - time.time()) < 10
