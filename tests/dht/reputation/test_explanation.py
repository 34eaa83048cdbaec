"""What is behind a standing: who gives how much trust, which convictions are left, what a newcomer lacks."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.reputation import ONE, Conviction, Evidence, OpenFail, Rejection, Succeeded, Work, score, why
from tests.dht.reputation import drawn
from tests.dht.reputation.drawn import ANCHORS, EPOCH, PEERS, everyone_works_for_everyone

HONEST = Evidence(works=everyone_works_for_everyone())


def explained(evidence, peer, most=10):
    return why(score(evidence, ANCHORS, EPOCH), evidence, peer, most)


@settings(max_examples=40)
@given(drawn.evidence, st.sampled_from(PEERS[2:]))
def test_the_flow_of_who_is_no_anchor_is_what_flows_in(evidence, peer):
    scores = score(evidence, ANCHORS, EPOCH)
    if peer in scores.anchors:
        return
    found = why(scores, evidence, peer, most=100)
    assert 0 <= found.standing.flow - sum(inflow.flow for inflow in found.inflows) <= len(PEERS) * 10
    assert [inflow.flow for inflow in found.inflows] == sorted((one.flow for one in found.inflows), reverse=True)
    assert all(inflow.credit > 0 for inflow in found.inflows)


def test_the_largest_are_listed_and_all_are_counted():
    found = explained(HONEST, "h", most=3)
    assert {inflow.peer for inflow in found.inflows} > {"a", "b"}
    assert (len(found.inflows), found.num_inflows) == (3, 7)
    assert found.inflows[0].credit == 10 * ONE


def test_an_established_peer_lacks_nothing_and_a_newcomer_is_told_how_much():
    assert explained(HONEST, "h").missing_flow == 0
    first = explained(replace(HONEST, works=(*HONEST.works, Work("c", "new", EPOCH, 100))), "new")
    assert first.standing.is_newcomer
    assert 0 < first.missing_flow < first.graduation_flow
    assert first.missing_flow + first.standing.flow == first.graduation_flow
    assert explained(Evidence(), "new").graduation_flow == 0


def test_convictions_and_claims_are_listed_with_what_is_left_of_them():
    evidence = replace(
        HONEST, convictions=(Conviction("h", EPOCH - 120), Conviction("h", EPOCH), Conviction("g", EPOCH)),
        rejections=(Rejection("h", EPOCH - 56), Rejection("h", EPOCH - 400), Rejection("h", EPOCH + 1)),
        open_fails=(OpenFail("c", "h"), OpenFail("d", "h"), OpenFail("h", "e")),
    )  # fmt: skip
    found = explained(evidence, "h")
    assert found.convictions == ((EPOCH, ONE), (EPOCH - 120, ONE // 2))
    assert found.rejections == ((EPOCH - 56, ONE // 2),)
    assert sum(weight.left for weight in found.convictions) == found.standing.convictions
    assert (found.doubted_by, found.doubts) == (("c", "d"), ("e",))


def test_an_heir_is_named_and_has_what_the_old_one_left():
    evidence = replace(
        HONEST, convictions=(Conviction("h", EPOCH - 9),), successions=(Succeeded("h", "new", EPOCH - 8),)
    )  # fmt: skip
    assert explained(evidence, "h").heir == "new"
    assert explained(evidence, "new").convictions[0].epoch == EPOCH - 9
    assert explained(evidence, "new").heir is None
