"""A client of a real swarm learns who is trusted, and the next one of the same home knows it at once."""

import asyncio

import pytest

from dht.rules import DEFAULT_RULES
from dht.standing.ranks import Rank
from dht.testnet import testnet
from node.client import rank_watch
from node.client.rank_watch import RankWatch
from tests.dht.receipts.made import sealed
from tests.dht.standing.test_board import ANCHOR, BIG, HONEST, enrolled


@pytest.fixture
async def nodes(monkeypatch):
    monkeypatch.setattr(rank_watch, "_BEGIN_S", 0.0)
    async with testnet(3, rules=DEFAULT_RULES, anchors=[ANCHOR.peer_id]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        await nodes[1].store(enrolled(HONEST))
        await nodes[1].store(sealed(HONEST, ANCHOR, **BIG))
        yield nodes


async def learned(watch):
    heard = asyncio.get_running_loop().create_future()
    async with watch:
        watch.listen(lambda ranks: heard.done() or heard.set_result(ranks))
        async with asyncio.timeout(20):
            ranks = await heard
        await asyncio.sleep(0.2)  # What was learned is being written.
        return ranks


async def test_what_one_client_learns_the_next_one_of_its_home_knows_at_once(nodes, tmp_path, monkeypatch):
    ranks = await learned(RankWatch(nodes[2], [nodes[0].peer_id], (), tmp_path))
    assert ranks.has_flow
    assert ranks.of(HONEST.peer_id).rank is Rank.ESTABLISHED
    monkeypatch.setattr(rank_watch, "_BEGIN_S", 1000.0)
    assert await learned(RankWatch(nodes[1], [], (), tmp_path)) == ranks
    other = RankWatch(nodes[1], [], (HONEST.peer_id,), tmp_path)
    async with other:
        await asyncio.sleep(0.3)
        assert other.ranks is None, "by other anchors others are trusted"
