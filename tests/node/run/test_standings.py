"""Commands judge by what the node that lives in the same home has found final."""

import asyncio
import time

from dht.identity import Identity
from dht.reputation import Conviction
from dht.rules import DEFAULT_RULES
from dht.testnet import testnet
from node.claims.notebook import NOTEBOOK, Notebook
from node.run.standings import board_of
from tests.node.claims.test_notebook import ruling


async def test_a_command_knows_what_the_node_here_has_kept_by_the_same_anchors_and_no_other_swarm_does(tmp_path):
    anchor, own = (Identity.ephemeral().peer_id for _ in range(2))
    async with testnet(2, rules=DEFAULT_RULES, anchors=[anchor]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        present = DEFAULT_RULES.epoch_of(time.time())
        kept = ruling(epoch=present - 100, settled_s=DEFAULT_RULES.start_of(present - 99))
        notebook = Notebook.open(tmp_path / NOTEBOOK)
        notebook.keep_rulings([kept], [anchor])

        async def convictions(anchors, home=tmp_path):
            return (await board_of(nodes[1], nodes[0].join_code, anchors, home).refresh()).judged.convictions

        assert await convictions([]) == (Conviction(kept.accused, kept.epoch),)
        assert await convictions([own]) == ()
        assert await convictions([], tmp_path / "elsewhere") == ()
        notebook.close()
