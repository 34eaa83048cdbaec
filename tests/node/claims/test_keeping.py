"""Who has to judge is known to the accuser, and to nobody's advantage who has not."""

from node.claims.keeping import judges_of
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, PEERS, UNIT_S, UP, T, claim_of, court_of, play


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
