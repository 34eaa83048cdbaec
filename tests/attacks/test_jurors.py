"""Jurors and anchors that lie, among real nodes on loopback: who copies has no vote, and a minority of anchors no say.

Nodes, clock and trials are those of ``tests/node/claims``: the DHT and all that is signed are real, what examiners
find is told to them.
"""

import asyncio
from dataclasses import replace

import pytest

from dht.identity import peer_id_to_bytes
from dht.judgement.outcomes import State
from dht.judgement.votes import Tally
from dht.records import Kind, seal
from dht.verdict import Opinion, VerdictPhase, commit, reveal
from tests.node.claims.court import RULES, UNIT_S, accusation, sitting

SALT = bytes(range(32))


class LazyJuror:
    """Sits on a committee, examines nothing, and says what it has seen another one say."""

    def __init__(self, court, swarm, copied):
        self._court, self._swarm, self._copied = court, swarm, copied

    async def say(self, verdict):
        assert await self._swarm.store(seal(verdict, self._swarm._identity, rules=RULES))

    async def seen(self, phase):
        """What the one that it copies has said so far."""
        key = peer_id_to_bytes(self._copied.peer_id), self._court.clock.epoch
        (found,) = [each for each in await self._swarm.fetch(Kind.VERDICT, key) if each.phase is phase]
        return found

    async def copy(self, phase):
        """Say the same as the other one, word by word, under its own name."""
        await self.say(replace(await self.seen(phase), member=self._swarm.peer_id))

    async def vote_afterwards(self):
        """Commit to what the other one has opened, dated back to when one may commit, and open that."""
        other = await self.seen(VerdictPhase.REVEAL)
        words = (self._swarm.peer_id, other.epoch, other.claim, 1, other.opinion, SALT)
        await self.say(commit(*words, self._court.clock.began_s + 4 * UNIT_S))
        await self.say(reveal(*words, other.error_ppm, int(self._court.clock())))


@pytest.mark.parametrize("way", ["another's commitment", "dated back"])
async def test_a_juror_that_copies_what_another_one_says_has_no_vote(tmp_path, way):
    async with sitting(tmp_path, num_jurors=3) as court:
        *honest, lazy = court.jurors
        juror = LazyJuror(court, lazy, honest[0])
        court.opinions = dict.fromkeys(court.nodes, Opinion.UPHELD)
        court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
        await court.turn(court.accuser, court.accused, units=0)
        await court.turn(*honest, units=3.1)
        await court.turn(*honest, units=3.5)
        if way == "another's commitment":
            await juror.copy(VerdictPhase.COMMIT)
        await court.turn(*honest, units=6.1)
        await (juror.copy(VerdictPhase.REVEAL) if way == "another's commitment" else juror.vote_afterwards())
        await court.turn(*honest, units=6.5)  # Who watches looks every half unit at least.
        court.clock.at(8.1)
        for watcher in honest:
            (ruling,) = (await court.outcomes(watcher)).rulings
            assert lazy.peer_id in ruling.committee(1)
            assert ruling.tallies[0] == Tally(3, 2, 0, 0)
            assert ruling.state is State.UPHELD, "two of three are enough"
        if way == "dated back":  # Who has not watched believes the dates: what was stored is a vote like any other.
            (ruling,) = (await court.outcomes(court.accused)).rulings
            assert ruling.tallies[0] == Tally(3, 3, 0, 0)


async def test_one_bad_anchor_of_three_has_no_effect_and_two_convict_whom_they_like_until_the_list_is_changed(tmp_path):
    """The accused is innocent, and the committee of holders cannot tell, so that anchors have the last word.

    Two of four are bad, and users believe three each: what follows from the same records depends on which.
    """
    async with sitting(tmp_path, num_anchors=4) as court:
        first, second, *bad = court.anchors
        court.opinions = dict.fromkeys(court.nodes, Opinion.REFUTED)
        court.opinions |= {each.peer_id: Opinion.INCONCLUSIVE for each in court.jurors}
        court.opinions |= {each.peer_id: Opinion.UPHELD for each in bad}
        court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
        await court.turn(court.accuser, court.accused, units=0)
        for units in (3.1, 3.5, 6.1):
            await court.turn(*court.jurors, units=units)
        for units in (10.1, 10.5, 14.1, 18.1, 18.5, 22.1):
            await asyncio.gather(*(court.turn(anchor, units=units) for anchor in court.anchors))
        court.clock.at(24.1)
        minority, majority = court.jurors
        court.trust(minority, first, second, bad[0])
        court.trust(majority, first, *bad)
        found = [await court.outcomes(swarm) for swarm in (minority, majority)]
        assert [each.rulings[0].tallies[2] for each in found] == [Tally(3, 1, 2, 0), Tally(3, 2, 1, 0)]
        assert [each.rulings[0].state for each in found] == [State.REJECTED, State.UPHELD]
        assert [[one.peer for one in each.convictions] for each in found] == [[], [court.accused.peer_id]]
