"""A swarm that was cut in two and healed: both sides saw different records, and all find the same scores again."""

import asyncio
import random

import pytest

from dht.audit import Finding
from dht.claim import Claim
from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.judgement.outcomes import State
from dht.judgement.signed_rulings import record_of
from dht.receipts.snapshot_keeper import SnapshotKeeper
from dht.receipts.snapshots import newest_record
from dht.records import Kind, seal
from dht.rules import DEFAULT_RULES
from dht.standing.board import ScoreBoard
from dht.standing.sightings import Sightings
from dht.standing.snapshot_scores import SnapshotScores
from dht.testnet import testnet
from tests.dht.receipts.made import sealed
from tests.dht.samples import receipt
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


UNIT_S = DEFAULT_RULES.epoch_s // 12
BEGAN_S = DEFAULT_RULES.start_of(EPOCH - 1)
JUDGES = [Identity.ephemeral() for _ in range(3)]


class Watcher:
    """A node's board that has seen what came, by a clock that is put on by hand."""

    def __init__(self, node):
        self.now_s = 0.0
        self._board = ScoreBoard(node, clock=lambda: self.now_s, rng=random.Random(1), sightings=Sightings())

    async def look(self, *times_s):
        for now_s in times_s:
            self.now_s = BEGAN_S + now_s
            found = await self._board.refresh()
        return found

    async def ruling(self, *times_s):
        """What has become of the one claim that there is."""
        (ruling,) = (await self.look(*times_s)).outcomes.rulings
        return ruling


def accusation():
    """A claim of somebody whom all trust: if nobody denies it, it is upheld."""
    work = receipt(LIAR, HONEST, epoch=EPOCH - 1, t_first=BEGAN_S + 1, t_last=BEGAN_S + 2).to_body()
    return Claim(
        JUDGES[0].peer_id, EPOCH - 1, 0, work, LIAR.sign(Kind.RECEIPT, work), bytes(16), segment=0, index=0,
        error_ppm=1, evidence=bytes(32), evidence_bytes=1, t=BEGAN_S + 100,
    )  # fmt: skip


@pytest.mark.parametrize(("num_left", "state"), [(2, State.UPHELD), (1, State.IGNORED)])
async def test_after_a_partition_all_nodes_act_by_what_most_anchors_have_found(num_left, state):
    """A claim is upheld on one side; to the other it comes when it is too late to deny it."""
    async with testnet(6, rules=DEFAULT_RULES, anchors=[each.peer_id for each in JUDGES]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        for number in range(3):
            holder = Identity.from_seed(bytes([number]) * 32)
            await nodes[0].store(enrolled(holder))
            assert await nodes[0].store(sealed(holder, JUDGES[0], epochs_ago=2, **BIG))
        left, right = nodes[:3], nodes[3:]
        watchers = here, there = [Watcher(side[2]) for side in (left, right)]
        for each in watchers:
            await each.look(90)
        cut = Cut(left, right)
        assert await left[0].store(seal(accusation(), JUDGES[0]))
        for each in watchers:
            await each.look(800, 1500, 2200)
        upheld = await here.ruling(11 * UNIT_S, 11 * UNIT_S + 500)
        await cut.heal()
        ignored = await there.ruling(11 * UNIT_S + 600, 11 * UNIT_S + 700)
        assert (upheld.state, upheld.is_final, ignored.state) == (State.UPHELD, True, State.IGNORED)
        for number, judge in enumerate(JUDGES):
            found = upheld if number < num_left else ignored
            assert await nodes[2 * number].store(seal(record_of(found, judge.peer_id), judge))
        last_s = 11 * UNIT_S + 900
        found = [await each.look(last_s) for each in (*watchers, Watcher(nodes[1]), Watcher(nodes[4]))]
        assert {each.outcomes.rulings[0].state for each in found} == {state}
        assert len({each.scores.digest for each in found}) == 1
        assert bool(found[0].judged.convictions) is (state is State.UPHELD)
        apart = [dict(each.settled) for each in found[:2]]
        assert [[ruling.state for ruling in each.values()] for each in apart] == [[State.UPHELD], [State.IGNORED]]
