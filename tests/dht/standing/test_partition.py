"""A swarm that was cut in two and healed: both sides saw different records, and all find the same scores again."""

import asyncio

from dht.audit import Finding
from dht.errors import PeerUnreachable
from dht.receipts.snapshot_keeper import SnapshotKeeper
from dht.receipts.snapshots import newest_record
from dht.rules import DEFAULT_RULES
from dht.standing.snapshot_scores import SnapshotScores
from dht.testnet import testnet
from tests.dht.receipts.made import sealed
from tests.dht.standing.test_board import ANCHOR, BIG, EPOCH, HONEST, LIAR, NOON_S, audited, board, enrolled


class Cut:
    """Keeps the nodes of two sides from asking each other anything, until it is healed."""

    def __init__(self, *sides):
        self._nodes = [node for side in sides for node in side]
        for side in sides:
            ours = {node.peer_id for node in side}
            for node in side:
                self._keep_within(node._overlay.protocol, ours)

    @staticmethod
    def _keep_within(protocol, ours):
        genuine = protocol.get_stub

        def get_stub(peer):
            if peer.to_base58() not in ours:
                raise PeerUnreachable("the swarm is cut")
            return genuine(peer)

        protocol.get_stub = get_stub

    async def heal(self):
        for node in self._nodes:
            del node._overlay.protocol.get_stub
            node._overlay.protocol.shunned.__init__()
        for node in self._nodes:
            await node._overlay.join([other.peer_id for other in self._nodes if other is not node])


async def scores_of(node):
    """What a node that has just started finds."""
    return (await board(node).refresh()).scores


async def test_after_a_partition_all_nodes_find_the_same_scores_again():
    async with testnet(6, rules=DEFAULT_RULES, anchors=[ANCHOR.peer_id]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        for peer in (ANCHOR, HONEST, LIAR):
            await nodes[0].store(enrolled(peer))
        left, right = nodes[:3], nodes[3:]
        cut = Cut(left, right)
        for side, provider in ((left, HONEST), (right, LIAR)):
            for ago in (0, 1):
                assert await side[0].store(sealed(provider, ANCHOR, epochs_ago=ago, **BIG))
        assert await left[1].store(audited(Finding.PASS, ago=1))
        apart = [await scores_of(side[2]) for side in (left, right)]
        assert [bool(found.standing(HONEST.peer_id).flow) for found in apart] == [True, False]
        assert [bool(found.standing(LIAR.peer_id).flow) for found in apart] == [False, True]

        await cut.heal()
        together = [await scores_of(node) for node in nodes]
        assert len({found.digest for found in together}) == 1
        assert all(together[0].standing(peer.peer_id).flow for peer in (HONEST, LIAR))
        published = []
        for node in (left[0], right[0]):
            keeper = SnapshotKeeper(node, node._identity, clock=lambda: NOON_S, scores=SnapshotScores(node))
            assert await keeper.sum_up(DEFAULT_RULES)
            published.append(await newest_record(nodes[5], node.peer_id, EPOCH))
        assert published[0].scores == published[1].scores
