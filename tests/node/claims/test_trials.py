"""Whole trials among real nodes on loopback: who is guilty is convicted, who is not is not, and who lied pays for it.

The nodes' clock is put on by hand, and whether work was right is what the examiners here are told.
"""

from dataclasses import replace

import pytest

from dht.judgement.outcomes import State
from dht.verdict import Opinion
from tests.node.claims.court import accusation, sitting


@pytest.fixture
async def court(tmp_path):
    async with sitting(tmp_path) as court:
        yield court


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


@pytest.mark.full
async def test_an_anchor_denies_for_a_server_that_is_away(court):
    court.opinions = dict.fromkeys(court.nodes, Opinion.REFUTED)
    court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
    await court.turn(court.accuser, court.anchor, units=0)
    await court.turn(court.anchor, units=0.5)
    (denial,) = (await court.nodes[court.anchor.peer_id].board.refresh()).proofs.contests
    assert denial.contester == court.anchor.peer_id
