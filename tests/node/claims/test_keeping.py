"""Who has to judge is known to the accuser, and what is past its time by what others sign is forgotten."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

from dht.judgement.outcomes import Ruling, State
from dht.reputation import DEFAULT_SCORE_RULES
from dht.standing.board import Terms, standings_of
from dht.standing.proofs import Proofs
from dht.standing.sightings import Sighting
from dht.standing.workbook import Workbook
from node.claims.keeping import ClaimsKeeping, judges_of, newest_of_others
from tests.dht.judgement.town import (
    ACCUSED,
    ACCUSER,
    ANCHORS,
    BY_ID,
    EPOCH,
    PEERS,
    RULES,
    UNIT_S,
    UP,
    T,
    claim_of,
    court_of,
    play,
)
from tests.dht.samples import receipt


def test_whoever_has_to_judge_an_open_claim_is_known_by_its_evidence():
    mine, other = claim_of(evidence=b"m" * 32), claim_of(PEERS[5], lane=8, evidence=b"o" * 32)
    town = play([mine, other], lambda *_: UP, court=court_of(PEERS[:20]), until=4)
    outcomes = town.outcomes(T + 4 * UNIT_S)
    ruling = next(each for each in outcomes.rulings if each.accuser == ACCUSER)
    assert len(ruling.committee(1)) == 7
    judges = judges_of(ACCUSER, [mine, other], outcomes)
    assert judges == {b"m" * 32: {ACCUSED, *ANCHORS, *ruling.committee(1)}}
    settled = outcomes._replace(rulings=tuple(_final(each) for each in outcomes.rulings))
    assert judges_of(ACCUSER, [mine, other], settled) == {}


def _final(ruling):
    return ruling._replace(is_final=True)


ME, ANCHOR = PEERS[0], PEERS[8]
NOTHING = standings_of(Workbook(), Proofs(), Terms((ANCHOR,), RULES, DEFAULT_SCORE_RULES), EPOCH, T)


def shown(*receipts, **records):
    proofs = Proofs(**records)
    return standings_of(Workbook(receipts), proofs, Terms((ANCHOR,), RULES, DEFAULT_SCORE_RULES), EPOCH + 9, T)


def test_what_time_it_is_at_least_others_show_and_nobody_to_itself():
    assert newest_of_others(shown(), ME) == 0
    assert newest_of_others(shown(claims=(claim_of(ME, PEERS[1]),)), ME) == 0
    assert newest_of_others(shown(claims=(claim_of(ME, PEERS[1]),)), PEERS[1]) == EPOCH
    assert newest_of_others(shown(receipt(BY_ID[ME], BY_ID[ANCHOR], epoch=EPOCH + 3)), ME) == EPOCH + 3


def rejected(claim, epoch):
    return Ruling(claim.hash, ACCUSER, ACCUSED, epoch, 0, claim.chunk, State.REJECTED, "It was false.", T)


async def test_what_is_past_its_time_is_forgotten(tmp_path):
    keeping = ClaimsKeeping(
        tmp_path, SimpleNamespace(serve=Mock(return_value=asyncio.sleep(0)), parameters=None), BY_ID[ME], Mock()
    )
    async with keeping:
        notebook, shelf = keeping._notebook, keeping._shelf
        names = [shelf.put(blob, RULES.end_of_evidence(EPOCH + after)) for after, blob in ((0, b"old"), (1, b"new"))]
        notebook.note_sightings([Sighting(b"a" * 32, EPOCH, 1.0), Sighting(b"b" * 32, EPOCH + 400, 1.0)])
        mine, other = claim_of(), claim_of(lane=8)
        old = {each.hash: rejected(each, EPOCH + after) for after, each in enumerate((mine, other))}
        keeping._note(replace(NOTHING, settled=old), EPOCH, RULES)
        assert set(keeping._kept) == set(notebook.rulings(())) == set(old)
        keeping._note(NOTHING, EPOCH + RULES.evidence_epochs + 1, RULES)
        assert set(keeping._kept) == set(notebook.rulings(())) == {other.hash}
        assert [each.record for each in notebook.sightings()] == [b"b" * 32]
        assert [shelf.get(name) for name in names] == [None, b"new"]
