"""Whole trials among real nodes on loopback: who is guilty is convicted, who is not is not, and who lied pays for it.

The nodes' clock is set to an epoch that has passed and put on by hand, so that a trial of hours takes as long as the
nodes need to read and to sign. Whether work was right is what the examiners here are told.
"""

import asyncio
import time
from dataclasses import replace

import pytest

from dht.ident import Ident, Role
from dht.judgement.outcomes import State
from dht.records import seal
from dht.rules import Rules
from dht.testnet import testnet
from dht.verdict import Opinion
from node.claims.accuser import Accusation
from node.claims.findings import Finding
from node.claims.keeping import ClaimsKeeping
from node.claims.notebook import Ballot
from tests.dht.receipts.made import sealed
from tests.node.check.session import PROFILE, held

RULES = Rules(window_epochs=6, evidence_epochs=12)
UNIT_S = RULES.epoch_s // 12
BIG = {"amount": 4096, "work": 4 * 4096, "manifest": bytes(32), "profile": PROFILE}


class Clock:
    """Unix seconds, by hand; a trial is counted from when it was made."""

    def __init__(self):
        self.epoch = RULES.epoch_of(time.time()) - 3
        self.began_s = RULES.start_of(self.epoch) + 100
        self.now_s = float(self.began_s)

    def __call__(self):
        return self.now_s

    def at(self, units):
        self.now_s = self.began_s + units * UNIT_S


class Court:
    """An anchor, an accused, an accuser and two more that hold the blocks."""

    def __init__(self, swarms, clock, home):
        self.clock = clock
        self.anchor, self.accused, self.accuser, *self.jurors = swarms
        self.home = home
        self.opinions = {}
        self.nodes = {}

    async def enter(self, swarm, exits):
        def examine(evidence, claim):
            return Finding(self.opinions[swarm.peer_id], 400_000, "It is what the test says.")

        home = self.home / swarm.peer_id
        home.mkdir(exist_ok=True)
        node = ClaimsKeeping(home, swarm, swarm._identity, examine, clock=self.clock)
        self.nodes[swarm.peer_id] = await node.__aenter__()
        exits.append(node)

    async def turn(self, *swarms, units):
        """Let these nodes take a turn; what they examine is done by its end."""
        self.clock.at(units)
        for swarm in swarms:
            node = self.nodes[swarm.peer_id]
            await node.turn(RULES)
            await node.desk.settle()

    async def outcomes(self):
        """What one that has no part in it comes to."""
        return (await self.nodes[self.anchor.peer_id].board.refresh()).outcomes


@pytest.fixture
async def court(tmp_path):
    clock = Clock()
    async with testnet(5, rules=RULES) as swarms:
        anchor = swarms[0].peer_id
        await asyncio.gather(*(swarm.wait_for_rules(10) for swarm in swarms))
        court = Court(swarms, clock, tmp_path)
        ago = RULES.epoch_of(time.time()) - clock.epoch + 1
        for swarm in swarms:
            who = seal(Ident(swarm.peer_id, clock.epoch, clock.epoch, 0, Role.SERVER, ""), swarm._identity, rules=RULES)
            assert await swarm.store(who)
        for swarm in (court.accused, *court.jurors):
            assert await swarm.store(sealed(swarm._identity, swarms[0]._identity, RULES, epochs_ago=ago, **BIG))
        exits = []
        try:
            for swarm in swarms:
                await court.enter(swarm, exits)
                court.nodes[swarm.peer_id].board._anchors = (anchor,)
            yield court
        finally:
            for node in exits:
                await node.__aexit__()


def accusation(court):
    session = held(provider=court.accused._identity, epoch=court.clock.epoch)
    body = session.receipt.to_body()
    signature = court.accused._identity.sign(type(session.receipt).KIND, body)
    return Accusation(session.evidence, session.offer.session, body, signature, 500_000)


@pytest.mark.full
async def test_a_guilty_server_denies_is_convicted_by_the_committee_finds_itself_guilty_and_does_not_appeal(court):
    court.opinions = dict.fromkeys(court.nodes, Opinion.UPHELD)
    court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
    await court.turn(court.accuser, court.accused, units=0)
    for units in (3.1, 3.5, 6.1):
        await court.turn(*court.jurors, units=units)
    await court.turn(court.accused, units=8.1)
    await court.turn(court.accused, units=8.5)
    assert court.nodes[court.accused.peer_id].desk.finding((await court.outcomes()).rulings[0].claim) is not None
    outcomes = await court.outcomes()
    assert [each.peer for each in outcomes.convictions] == [court.accused.peer_id]
    assert outcomes.rulings[0].tallies[0].upheld == 2
    court.clock.at(10.1)
    found = [(await node.board.refresh()).outcomes for node in court.nodes.values()]
    assert all(each == found[0] for each in found)
    assert found[0].rulings[0].is_final


async def test_an_innocent_server_denies_a_false_claim_and_the_committee_rejects_it(court):
    court.opinions = dict.fromkeys(court.nodes, Opinion.REFUTED)
    court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
    await court.turn(court.accuser, court.accused, units=0)
    await court.turn(court.accused, units=0.4)
    await court.turn(*court.jurors, units=3.1)
    await court.turn(*court.jurors, units=3.5)
    await court.turn(*court.jurors, units=6.1)
    court.clock.at(8.1)
    ruling = (await court.outcomes()).rulings[0]
    assert ruling.state is State.PENDING
    assert ruling.tallies[0].refuted == 2
    court.clock.at(10.1)
    outcomes = await court.outcomes()
    assert outcomes.rulings[0].state is State.REJECTED
    assert [each.accuser for each in outcomes.rejections] == [court.accuser.peer_id]
    assert not outcomes.convictions


async def test_a_claim_whose_evidence_does_not_hold_is_refuted_without_being_run(court, monkeypatch):
    monkeypatch.setattr("node.claims.accuser.unpack_and_verify", lambda *_: None)  # Ours would not claim it.
    true = accusation(court)
    edited = replace(true, evidence=replace(true.evidence, given=bytes(len(true.evidence.given))))
    court.opinions = {}  # An examiner that was asked would fail.
    court.nodes[court.accuser.peer_id].accuser.hold(edited)
    await court.turn(court.accuser, court.accused, units=0)
    await court.turn(*court.jurors, units=3.1)
    claim = (await court.outcomes()).rulings[0].claim
    assert (await court.outcomes()).rulings[0].state is State.PENDING
    for juror in court.jurors:
        found = court.nodes[juror.peer_id].desk.finding(claim)
        assert found.opinion is Opinion.REFUTED
        assert "gave other bytes" in found.why


async def test_a_clock_that_was_far_ahead_once_loses_nothing(court):
    """Votes and evidence are gone for good otherwise, and rulings that the records of a window do not show again."""
    node = court.nodes[court.accuser.peer_id]
    node.accuser.hold(accusation(court))
    await court.turn(court.accuser, units=0)
    (made,) = (await node.board.refresh()).proofs.claims
    claim = made.hash
    for units in (24.1, 24.2):
        await court.turn(court.accuser, units=units)
    assert set(node.board.standings.settled) == {claim}
    node._notebook.keep_ballot(Ballot(claim, 1, court.clock.epoch, Opinion.UPHELD, bytes(32), 0, b"envelope"))
    await court.turn(court.accuser, units=12 * 1000)
    assert node.board.standings.settled == {}
    await court.turn(court.accuser, units=24.3)
    assert set(node.board.standings.settled) == set(node._notebook.rulings(())) == {claim}
    assert node._shelf.get(made.evidence) is not None
    assert node._notebook.ballot(claim, 1) is not None
    assert len(node._notebook.claims_since(court.clock.epoch)) == 1
    assert claim in {each.record for each in node._notebook.sightings()}


@pytest.mark.full
async def test_an_anchor_denies_for_a_server_that_is_away(court):
    court.opinions = dict.fromkeys(court.nodes, Opinion.REFUTED)
    court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
    await court.turn(court.accuser, court.anchor, units=0)
    await court.turn(court.anchor, units=0.5)
    (denial,) = (await court.nodes[court.anchor.peer_id].board.refresh()).proofs.contests
    assert denial.contester == court.anchor.peer_id
