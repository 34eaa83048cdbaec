"""Whole trials among real nodes: who is guilty is convicted, who is not is not, and who lied pays for it."""

from dataclasses import replace

import pytest

from dht.judgement.outcomes import State
from dht.verdict import Opinion
from node.claims.notebook import Ballot
from tests.node.claims.court import accusation


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
    assert set(node.board.standings.settled) == set(node._notebook.rulings((court.anchor.peer_id,))) == {claim}
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
