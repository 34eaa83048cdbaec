"""The score: the formula, the same for everybody, and what those who want more of it can do."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.reputation import (
    ONE,
    Conviction,
    Evidence,
    OpenFail,
    Pass,
    Rejection,
    ScoreRules,
    Work,
    score,
)
from tests.dht.reputation import drawn
from tests.dht.reputation.drawn import ANCHORS, EPOCH, PEERS, everyone_works_for_everyone
from tests.dht.reputation.in_floats import in_floats, score_of

HONEST = Evidence(works=everyone_works_for_everyone())
OTHERS = PEERS[len(ANCHORS) :]
few = settings(max_examples=40)
some_work = st.integers(1, 4096 * 1000)


def flows(scores, peers=PEERS):
    return {peer: scores.standing(peer).flow for peer in peers}


def is_near(found, expected):
    return math.isclose(found / ONE, expected, rel_tol=1e-6, abs_tol=1e-9)


@few
@given(drawn.without_successions)
def test_integers_agree_with_floats(evidence):
    scores = score(evidence, ANCHORS, EPOCH)
    expected, possible = in_floats(evidence, ANCHORS, EPOCH)
    for peer, fields in expected.items():
        standing = scores.standing(peer)
        for name in ("flow", "convictions", "rejections", "penalty"):
            assert is_near(getattr(standing, name), fields[name]), (peer, name)
    w = next(value for value in sorted(possible) if is_near(scores.typical_flow, value))
    for peer, fields in expected.items():
        if fields["flow"] > 1e-6:
            standing = scores.standing(peer)
            for found, value in zip((standing.score, standing.credibility), score_of(fields, w), strict=True):
                assert math.isclose(found / ONE, value, rel_tol=1e-5, abs_tol=1e-9)


@few
@given(drawn.evidence, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(evidence, random):
    def shuffled(entries):
        return tuple(random.sample(entries, len(entries)))

    other = Evidence(
        works=shuffled(evidence.works), passes=shuffled(evidence.passes), convictions=shuffled(evidence.convictions),
        rejections=shuffled(evidence.rejections), open_fails=shuffled(evidence.open_fails),
        equivocators=frozenset(sorted(evidence.equivocators, reverse=True)),
        successions=shuffled(evidence.successions),
    )  # fmt: skip
    assert score(other, ANCHORS[::-1], EPOCH) == score(evidence, ANCHORS, EPOCH)


@few
@given(drawn.evidence)
def test_what_is_a_set_counts_once_and_work_may_come_in_parts(evidence):
    parts = tuple(part for work in evidence.works for part in (work._replace(work=work.work // 3),) * 2)
    rests = tuple(work._replace(work=work.work - 2 * (work.work // 3)) for work in evidence.works)
    other = replace(
        evidence, works=parts + rests, passes=evidence.passes * 2, open_fails=evidence.open_fails * 2,
        successions=evidence.successions * 2,
    )  # fmt: skip
    assert score(other, ANCHORS, EPOCH).digest == score(evidence, ANCHORS, EPOCH).digest


@few
@given(drawn.evidence)
def test_every_number_is_in_its_range(evidence):
    scores = score(evidence, ANCHORS, EPOCH)
    for peer in scores.peers:
        standing = scores.standing(peer)
        assert 0 <= standing.credibility <= standing.score <= standing.penalty <= ONE
        assert 0 <= standing.flow <= ONE
    assert sum(flows(scores, scores.peers).values()) <= ONE


def test_the_digest_is_of_everything_that_the_scores_are_of():
    digest = score(HONEST, ANCHORS, EPOCH).digest
    others = [
        score(HONEST, ANCHORS[:1], EPOCH),
        score(HONEST, ANCHORS, EPOCH + 1),
        score(replace(HONEST, works=HONEST.works[1:]), ANCHORS, EPOCH),
        score(replace(HONEST, rejections=(Rejection("h", EPOCH),)), ANCHORS, EPOCH),
        score(HONEST, ANCHORS, EPOCH, ScoreRules(hops=3)),
    ]
    assert len({digest, *(other.digest for other in others)}) == 6
    assert len(digest) == 32


def test_while_nothing_flows_everybody_is_a_newcomer_and_that_shows():
    for scores in (score(Evidence(), ANCHORS, EPOCH), score(HONEST, (), EPOCH)):
        assert not scores.has_flow
        assert all(scores.standing(peer).is_newcomer for peer in (*PEERS, "unknown"))
    assert score(HONEST, ANCHORS, EPOCH).has_flow


def test_of_an_unknown_peer_nothing_is_known():
    standing = score(HONEST, ANCHORS, EPOCH).standing("unknown")
    assert (standing.score, standing.flow, standing.penalty) == (0, 0, ONE)
    assert standing.is_newcomer


def test_work_for_trusted_peers_makes_a_newcomer_an_established_one():
    once = score(replace(HONEST, works=(*HONEST.works, Work("c", "new", EPOCH, 4096 // 8))), ANCHORS, EPOCH)
    much = tuple(Work(peer, "new", EPOCH, 4096 * 10) for peer in PEERS)
    often = score(replace(HONEST, works=HONEST.works + much), ANCHORS, EPOCH)
    assert once.standing("new").is_newcomer
    assert once.standing("new").flow > 0
    assert not often.standing("new").is_newcomer
    assert often.standing("new").score > ONE * 3 // 4


def test_work_goes_to_who_is_trusted_and_not_more_to_who_is_trusted_most():
    scores = score(replace(HONEST, works=(*HONEST.works, Work("c", "new", EPOCH, 4096 // 8))), ANCHORS, EPOCH)
    assert {scores.weight(peer) for peer in PEERS} == {ONE * 2 // 3}
    assert scores.weight("new") == scores.weight("unknown") == 0
    convicted = score(replace(HONEST, convictions=(Conviction("h", EPOCH),)), ANCHORS, EPOCH)
    assert convicted.weight("h") == 0 < convicted.standing("h").score
    fading = score(replace(HONEST, convictions=(Conviction("h", EPOCH - 120),)), ANCHORS, EPOCH)
    assert fading.weight("h") == fading.standing("h").score >= ONE // 8


def test_a_ring_whose_trust_runs_in_circles_has_more_flow_and_no_more_work():
    """All work for all; five of them sign for each other besides, as much as counts."""
    crowd = tuple(f"peer {i:02}" for i in range(30))
    works = everyone_works_for_everyone(crowd, work=4096)
    ring = everyone_works_for_everyone(crowd[-5:], work=4096 * 1000)
    scores = score(Evidence(works=works + ring), crowd[:5], EPOCH)
    honest, inflated = crowd[5:-5], crowd[-5:]
    assert min(scores.standing(peer).flow for peer in inflated) > max(scores.standing(peer).flow for peer in honest)
    assert {scores.weight(peer) for peer in (*honest, *inflated)} == {ONE * 2 // 3}


def test_what_is_older_than_the_window_or_later_than_the_epoch_does_not_count():
    for epoch, counts in ((EPOCH, True), (EPOCH - 55, True), (EPOCH - 56, False), (EPOCH + 1, False)):
        scores = score(Evidence(works=everyone_works_for_everyone(epoch=epoch)), ANCHORS, EPOCH)
        assert scores.has_flow is counts
        assert bool(scores.standings.keys() - ANCHORS) is counts
    for epoch, counts in ((EPOCH, True), (EPOCH - 359, True), (EPOCH - 360, False), (EPOCH + 1, False)):
        scores = score(replace(HONEST, convictions=(Conviction("h", epoch),)), ANCHORS, EPOCH)
        assert (scores.standing("h").penalty < ONE) is counts


@few
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), some_work), min_size=1, max_size=60), drawn.evidence)
def test_a_ring_without_inflow_has_no_flow_and_moves_nobody(ring, evidence):
    fakes = tuple(Work(f"sybil {one}", f"sybil {other}", EPOCH, work) for one, other, work in ring)
    passes = tuple(Pass(f"sybil {one}", f"sybil {other}", EPOCH) for one, other, _ in ring)
    before = score(evidence, ANCHORS, EPOCH)
    after = score(replace(evidence, works=evidence.works + fakes, passes=evidence.passes + passes), ANCHORS, EPOCH)
    assert after.typical_flow == before.typical_flow
    assert all(after.standing(peer) == before.standing(peer) for peer in before.peers)
    assert all(after.standing(peer).flow == 0 for peer in after.peers if peer.startswith("sybil"))
    assert all(after.standing(peer).is_newcomer for peer in after.peers if peer.startswith("sybil"))


@given(some_work, st.integers(1, 100))
def test_what_a_ring_signs_for_itself_does_not_change_the_flow_into_it(work, times):
    """One sybil has worked honestly for a trusted peer; the ring's flow is what that brought in, whatever it signs."""
    door = (Work("c", "sybil 0", EPOCH, 4096),)
    inside = tuple(Work(f"sybil {i}", f"sybil {(i + 1) % 3}", EPOCH, work * times) for i in range(3))
    honest = score(replace(HONEST, works=HONEST.works + door), ANCHORS, EPOCH)
    ring = score(replace(HONEST, works=HONEST.works + door + inside), ANCHORS, EPOCH)
    names = [f"sybil {i}" for i in range(3)]
    entered, kept = honest.standing("sybil 0").flow, sum(flows(ring, names).values())
    assert entered == ring.standing("sybil 0").flow  # nothing comes back to the door in four steps
    assert kept <= entered * 11 // 10 + 3  # 0.1 of it is passed on, once around
    assert all(ring.standing(peer).flow <= honest.standing(peer).flow for peer in OTHERS)


@given(some_work)
def test_a_consumer_that_signs_for_more_than_there_was_gives_no_one_more_than_a_tenth(work):
    scores = score(Evidence(works=(Work("a", "friend", EPOCH, work),)), ("a",), EPOCH)
    # m_1 of the friend is a tenth, and the anchor has nine tenths again: 0.1 (0.7 + 0.9 * 0.49 + ...) * 0.3
    assert flows(scores, ["friend"])["friend"] / ONE < 0.1 * (1 - 0.3)


def test_a_conviction_costs_score_and_what_a_convict_passes_on_by_the_same_factor():
    protege = (*HONEST.works, *(Work("h", f"friend {i}", EPOCH, 4096 * 10) for i in range(3)))
    before = score(Evidence(works=protege), ANCHORS, EPOCH)
    after = score(Evidence(works=protege, convictions=(Conviction("h", EPOCH),)), ANCHORS, EPOCH)
    assert after.standing("h").penalty == ONE // 16
    assert after.standing("h").flow < before.standing("h").flow / 8
    assert after.standing("h").score < ONE // 16
    assert not after.standing("h").is_newcomer
    passed_on = [scores.moved.shares["h"]["friend 0"] for scores in (before, after)]
    assert passed_on[1] == passed_on[0] // 16


@few
@given(drawn.without_successions, st.sampled_from(OTHERS))
def test_many_convictions_leave_a_peer_without_row_and_column(evidence, convict):
    convictions = evidence.convictions + (Conviction(convict, EPOCH),) * 11
    scores = score(replace(evidence, convictions=convictions), ANCHORS, EPOCH)
    standing = scores.standing(convict)
    assert (standing.score, standing.flow, standing.penalty) == (0, 0, 0)
    assert convict not in scores.moved.shares
    assert not any(convict in row for row in scores.moved.shares.values())


@few
@given(drawn.without_successions, st.sampled_from(OTHERS))
def test_an_equivocator_is_out(evidence, liar):
    scores = score(replace(evidence, equivocators=frozenset({liar})), ANCHORS, EPOCH)
    standing = scores.standing(liar)
    assert (standing.score, standing.flow, standing.credibility) == (0, 0, 0)
    assert standing.is_equivocator
    assert not standing.is_newcomer


def test_a_conviction_fades_and_the_convict_may_begin_again():
    def at(epoch):
        evidence = Evidence(works=everyone_works_for_everyone(epoch=epoch), convictions=(Conviction("h", EPOCH),))
        return score(evidence, ANCHORS, epoch).standing("h")

    assert at(EPOCH).penalty < at(EPOCH + 60).penalty < at(EPOCH + 120).penalty == ONE // 4
    assert at(EPOCH + 360).penalty == ONE


@few
@given(drawn.without_successions, st.sampled_from(PEERS), st.sampled_from(OTHERS))
def test_who_slanders_withdraws_his_own_trust_and_nothing_else(evidence, accuser, accused):
    before = score(evidence, ANCHORS, EPOCH)
    after = score(replace(evidence, open_fails=(*evidence.open_fails, OpenFail(accuser, accused))), ANCHORS, EPOCH)
    assert after.standing(accused).penalty == before.standing(accused).penalty
    for consumer, row in before.credit.items():
        for provider, credit in row.items():
            expected = 0 if (consumer, provider) == (accuser, accused) else credit
            assert after.credit[consumer][provider] == expected


def test_a_slandered_peer_keeps_its_score_while_the_others_trust_it():
    crowd = tuple(f"peer {i:02}" for i in range(30))
    honest = Evidence(works=everyone_works_for_everyone(crowd))
    slandered = replace(honest, open_fails=(OpenFail("peer 29", "peer 10"),))
    before, after = (score(evidence, crowd[:5], EPOCH).standing("peer 10") for evidence in (honest, slandered))
    assert after.score > before.score * 98 // 100


def test_rejected_claims_cost_a_voice_and_no_work():
    rejected = score(replace(HONEST, rejections=(Rejection("h", EPOCH),) * 3), ANCHORS, EPOCH).standing("h")
    before = score(HONEST, ANCHORS, EPOCH).standing("h")
    assert (rejected.score, rejected.flow) == (before.score, before.flow)
    assert rejected.credibility == before.credibility // 8


@few
@given(drawn.without_successions)
def test_only_anchors_have_flow_of_themselves(evidence):
    scores = score(evidence, ANCHORS, EPOCH)
    reached, edge = set(ANCHORS), set(ANCHORS)
    for _ in range(4):
        edge = {getter for giver in edge for getter in scores.moved.shares.get(giver, ())}
        reached |= edge
    assert {peer for peer in scores.peers if scores.standing(peer).flow} <= reached
    assert all(scores.standing(anchor).flow >= ONE * 3 // 10 // len(ANCHORS) - 1 for anchor in ANCHORS)


def test_flow_is_kept_but_for_what_rounding_drops():
    scores = score(HONEST, ANCHORS, EPOCH)
    for mass in scores.moved.masses:
        assert ONE - 200 <= sum(mass.values()) <= ONE
    assert sum(flows(scores).values()) / ONE == pytest.approx(1 - 0.7**5, abs=1e-9)
