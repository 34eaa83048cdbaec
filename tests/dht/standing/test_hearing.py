"""Claims become convictions and rejections by receipts of the time, and what was settled outlives these."""

import itertools
from dataclasses import replace
from unittest.mock import Mock

import pytest

from dht.judgement.duties import duties
from dht.judgement.outcomes import Ruling, State
from dht.judgement.signed_rulings import record_of
from dht.reputation import DEFAULT_SCORE_RULES, Conviction, OpenFail, Rejection, score
from dht.standing.board import Terms, standings_of
from dht.standing.hearing import hear
from dht.standing.proofs import Judged, Proofs
from dht.standing.ranks import Rank, rank_of
from dht.standing.workbook import Workbook
from tests.dht.judgement.town import (
    ACCUSED,
    ACCUSER,
    ANCHORS,
    BY_ID,
    DOWN,
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

HOLDERS = (ACCUSED, *PEERS[2:7])
TRUSTED = HOLDERS[1]
ANCHOR = ANCHORS[0]
END_S = RULES.start_of(EPOCH + 3)
COURT = court_of(HOLDERS, dict.fromkeys(HOLDERS, 2**40), [ANCHOR])


def book(epochs=(EPOCH - 1, EPOCH)):
    """Everybody who holds the blocks has worked for the anchor."""
    return Workbook(
        receipt(BY_ID[holder], BY_ID[ANCHOR], epoch=epoch, amount=4096 * 5, work=4096 * 20)
        for holder in HOLDERS
        for epoch in epochs
    )


def tried(town):
    return Proofs(claims=tuple(town.claims), contests=tuple(town.contests), verdicts=tuple(town.verdicts))


def heard(proofs, *, worked=None, now_s=END_S, settled=None, anchors=(ANCHOR,), seen=None):
    worked = book() if worked is None else worked
    return hear(worked, proofs, anchors, RULES, DEFAULT_SCORE_RULES, now_s, settled or {}, seen or {})


def ruled(ruling, *anchors):
    return tuple(record_of(ruling, anchor) for anchor in anchors)


def test_who_does_not_deny_a_claim_is_convicted_and_gets_no_work_and_until_then_it_is_open():
    proofs = tried(play([claim_of(TRUSTED)], lambda *_: None, court=COURT, denies=False, appeals=False))
    early = heard(proofs, now_s=RULES.start_of(EPOCH) + 101)
    assert (early.judged.convictions, early.judged.open_fails) == ((), (OpenFail(TRUSTED, ACCUSED),))
    assert early.judged.cases[0].state == "open"
    judged = heard(proofs).judged
    assert judged.convictions == (Conviction(ACCUSED, EPOCH),)
    assert judged.cases[0].state == "upheld"
    terms = Terms((ANCHOR,), RULES, DEFAULT_SCORE_RULES)
    scores = standings_of(book(), proofs, terms, EPOCH + 3, END_S).scores
    assert rank_of(scores, ACCUSED) is Rank.CONVICTED
    assert rank_of(scores, HOLDERS[2]) is Rank.ESTABLISHED


def test_silence_convicts_nobody_whom_an_untrusted_id_accuses_so_a_claim_dated_back_for_newcomers_does_not_either():
    """A new id costs nothing, and whoever was not there cannot know that its claim was published too late to deny."""
    late = heard(Proofs(claims=(claim_of(PEERS[150]),)))
    assert (late.judged.convictions, late.judged.rejections) == ((), ())
    assert late.judged.cases[0].state == "undecided"
    found = heard(tried(play([claim_of()], lambda *_: UP, court=COURT, denies=False, appeals=False)))
    assert found.judged.convictions == (Conviction(ACCUSED, EPOCH),), "who is guilty and silent is judged by holders"


def test_a_committee_of_those_with_flow_convicts_or_rejects_and_a_slanderer_pays():
    guilty = heard(tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False)))
    assert guilty.judged.convictions == (Conviction(ACCUSED, EPOCH),)
    slander = heard(tried(play([claim_of()], lambda *_: DOWN, court=COURT, appeals=False))).judged
    assert (slander.convictions, slander.open_fails) == ((), ())
    assert slander.rejections == (Rejection(ACCUSER, EPOCH),)
    assert slander.refuted == {OpenFail(ACCUSER, ACCUSED)}


def test_members_whom_nobody_trusts_have_no_vote():
    """Sybils who hold the blocks by receipts of each other are not drawn, so their word convicts nobody."""
    ring = PEERS[20:26]
    town = play([claim_of()], lambda *_: UP, court=court_of([ACCUSED, *ring], dict.fromkeys(ring, 2**40)))
    worked = book()
    for one, other in itertools.pairwise(ring):
        worked.add(receipt(BY_ID[one], BY_ID[other], epoch=EPOCH - 1, amount=4096 * 5, work=4096 * 20))
    assert heard(tried(town), worked=worked).judged.convictions == ()


RING = PEERS[20:26]


def two_hold_the_blocks(*, ring=RING):
    """The accused and one other hold the first blocks, five others the next ones; a ring signs for each other."""
    worked = Workbook()
    for number, holder in enumerate(HOLDERS):
        start = 0 if number < 2 else 4
        for epoch in (EPOCH - 1, EPOCH):
            span = {"start": start, "end": start + 4, "epoch": epoch}
            worked.add(receipt(BY_ID[holder], BY_ID[ANCHOR], **span, amount=4096 * 5, work=4096 * 20))
    for one, other in itertools.permutations(ring, 2):
        worked.add(receipt(BY_ID[one], BY_ID[other], epoch=EPOCH - 1, amount=4096 * 5, work=4096 * 20))
    return worked


def test_names_that_hold_blocks_by_receipts_of_each_other_let_silence_convict_nobody():
    """Where two hold the blocks nothing follows from a claim; names that cost nothing must not make it a trial that a
    server loses in its sleep, with nobody who could judge its appeal."""
    slanderer = HOLDERS[4]
    asleep = tried(play([claim_of(slanderer)], lambda *_: None, court=COURT, denies=False, appeals=False))
    alone = heard(asleep, worked=two_hold_the_blocks(ring=()))
    assert [case.state for case in alone.judged.cases] == ["local"]
    judged = heard(asleep, worked=two_hold_the_blocks()).judged
    assert (judged.convictions, judged.cases[0].state) == ((), "undecided")
    assert heard(asleep).judged.convictions, "where others could judge, who is silent is convicted"


def test_an_anchor_needs_nobody_who_could_judge():
    proofs = tried(play([claim_of(ANCHOR)], lambda *_: None, court=COURT, denies=False, appeals=False))
    assert heard(proofs, worked=two_hold_the_blocks()).judged.convictions == (Conviction(ACCUSED, EPOCH),)


def test_what_was_settled_stands_when_its_receipts_are_gone_and_only_for_who_remembers_it():
    proofs = tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False))
    before = heard(proofs)
    assert set(before.settled) == {proofs.claims[0].hash}
    later = END_S + 60 * RULES.epoch_s
    gone = Workbook()
    again = heard(proofs, worked=gone, now_s=later, settled=before.settled)
    assert again == before
    assert heard(proofs, worked=gone, now_s=later).judged.convictions == (), "a newcomer cannot know"


def test_what_was_settled_stands_when_its_claim_is_read_no_more_and_is_forgotten_when_it_counts_no_more():
    """A node that has started anew reads the claims of a window; what it has kept is of many more epochs."""
    proofs = tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False))
    settled = heard(proofs).settled
    later = END_S + 60 * RULES.epoch_s
    again = heard(Proofs(), worked=Workbook(), now_s=later, settled=settled)
    assert again.judged.convictions == (Conviction(ACCUSED, EPOCH),)
    assert duties(ACCUSED, (), again.outcomes, RULES, later) == []
    much_later = RULES.start_of(EPOCH + RULES.evidence_epochs)
    assert heard(Proofs(), worked=Workbook(), now_s=much_later, settled=settled)[:2] == (Judged(), {})


def test_a_newcomer_after_the_window_convicts_whom_most_anchors_have_convicted():
    """Neither the claim nor the receipts of the holders are read any more."""
    proofs = tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False))
    (found,) = heard(proofs, anchors=ANCHORS).settled.values()
    later = END_S + 60 * RULES.epoch_s

    def newcomer(*signers, now_s=later, anchors=ANCHORS):
        return heard(Proofs(rulings=ruled(found, *signers)), worked=Workbook(), now_s=now_s, anchors=anchors)

    convicted = newcomer(*ANCHORS[:3])
    assert convicted.judged.convictions == (Conviction(ACCUSED, EPOCH),)
    assert convicted.settled == {}, "others' word is read again, and not kept as one's own"
    assert newcomer(*ANCHORS[:2]).judged == Judged(), "a minority changes nothing"
    assert newcomer(*ANCHORS[:2], *PEERS[10:20]).judged == Judged(), "nor does who is no anchor"
    assert newcomer(*ANCHORS[:3], anchors=PEERS[:3]).judged == Judged(), "nor who is none of the reader's"
    forgotten = RULES.start_of(EPOCH + RULES.evidence_epochs)
    assert newcomer(*ANCHORS, now_s=forgotten - 1).judged.convictions
    assert newcomer(*ANCHORS, now_s=forgotten).judged == Judged()


def digest(proofs, *, seen=None, settled=None, epoch=EPOCH + 3, worked=None):
    terms = Terms(ANCHORS, RULES, DEFAULT_SCORE_RULES)
    worked = book() if worked is None else worked
    end_s = RULES.start_of(epoch + 1)
    return standings_of(worked, proofs, terms, epoch, end_s, settled or {}, seen or {}).scores.digest


def test_a_claim_dated_back_is_believed_by_no_newcomer_where_most_anchors_saw_it_come_too_late():
    claim = claim_of(ANCHOR)
    proofs, seen = Proofs(claims=(claim,)), {claim.hash: claim.t + 7 * UNIT_S}
    watcher = heard(proofs, anchors=ANCHORS, seen=seen)
    late = watcher.settled[claim.hash]
    assert (late.state, watcher.judged.convictions) == (State.IGNORED, ())
    assert heard(proofs, anchors=ANCHORS).judged.convictions == (Conviction(ACCUSED, EPOCH),), "signed times alone"
    assert digest(proofs) != digest(proofs, seen=seen)
    with_rulings = replace(proofs, rulings=ruled(late, *ANCHORS[2:]))
    newcomer = heard(with_rulings, anchors=ANCHORS)
    assert (newcomer.judged.convictions, newcomer.judged.open_fails) == ((), ())
    assert newcomer.outcomes.rulings[0].why == "3 of 5 anchors have signed so."
    assert digest(with_rulings) == digest(with_rulings, seen=seen)


def test_who_is_ignored_for_another_claim_of_his_is_so_only_as_long_as_that_one_counts():
    """One was dated back, before another that its author had made of the same chunk: nodes that did not see it come
    take the genuine one for a repetition, until the anchors have said which of them was late."""
    genuine = claim_of(ANCHOR, t=T + UNIT_S)
    dated_back = claim_of(ANCHOR, number=1)
    proofs = Proofs(claims=(genuine, dated_back))
    believing = heard(proofs, anchors=ANCHORS)
    assert believing.outcomes.rulings[1][:2] == (genuine.hash, ANCHOR)
    assert believing.outcomes.rulings[1].state is State.IGNORED
    assert set(believing.settled) == {dated_back.hash}
    seen = {genuine.hash: genuine.t + 10.0, dated_back.hash: dated_back.t + 9000.0}
    watcher = heard(proofs, anchors=ANCHORS, seen=seen)
    assert [each.state for each in watcher.settled.values()] == [State.IGNORED, State.UPHELD]
    told = replace(proofs, rulings=ruled(watcher.settled[dated_back.hash], *ANCHORS[:3]))
    after = heard(told, anchors=ANCHORS, settled=believing.settled)
    assert [each.state for each in after.outcomes.rulings] == [State.IGNORED, State.UPHELD]


def test_watchers_and_newcomers_find_the_same_scores_of_what_anchors_have_ruled_on():
    """Long after the trial: one has kept what it found, another has kept something else, the third was not there."""
    (found,) = heard(
        tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False)), anchors=ANCHORS
    ).settled.values()
    epoch = EPOCH + 80
    worked = book((epoch - 1, epoch))
    kept = [{}, {found.claim: found}, {found.claim: found._replace(state=State.REJECTED)}]
    assert len({digest(Proofs(), settled=each, epoch=epoch, worked=worked) for each in kept}) == 3
    rulings = Proofs(rulings=ruled(found, *ANCHORS[:3]))
    assert len({digest(rulings, settled=each, epoch=epoch, worked=worked) for each in kept}) == 1
    minority = Proofs(rulings=ruled(found, *ANCHORS[:2]))
    assert len({digest(minority, settled=each, epoch=epoch, worked=worked) for each in kept}) == 3


def test_what_anchors_have_ruled_stands_against_what_this_node_would_find_and_it_keeps_its_own():
    proofs = tried(play([claim_of()], lambda *_: DOWN, court=COURT, appeals=False))
    own = heard(proofs, anchors=ANCHORS)
    (mine,) = own.settled.values()
    assert mine.state is State.REJECTED
    false = replace(proofs, rulings=ruled(mine._replace(state=State.UPHELD), *ANCHORS[:3]))
    theirs = heard(false, anchors=ANCHORS, settled=own.settled)
    assert (theirs.judged.convictions, theirs.judged.rejections) == ((Conviction(ACCUSED, EPOCH),), ())
    assert theirs.settled == own.settled
    assert heard(replace(proofs, rulings=false.rulings[:2]), anchors=ANCHORS, settled=own.settled) == own


def test_a_chunk_that_anchors_have_ruled_on_convicts_once_whoever_claims_it():
    proofs = tried(play([claim_of()], lambda *_: UP, court=COURT, appeals=False))
    (found,) = heard(proofs, anchors=ANCHORS).settled.values()
    again = claim_of(TRUSTED, t=T + 1)
    assert again.chunk == found.chunk
    both = Proofs(claims=(again,), rulings=ruled(found, *ANCHORS[:3]))
    assert heard(both, anchors=ANCHORS).judged.convictions == (Conviction(ACCUSED, EPOCH),)


def test_where_nothing_is_claimed_nothing_is_computed():
    assert heard(Proofs())[:2] == (Judged(), {})


def test_claims_about_blocks_that_hardly_anybody_holds_cost_no_scores(monkeypatch):
    """They are never settled, so somebody who makes one in each epoch would have all scores computed again for good."""
    monkeypatch.setattr("dht.standing.hearing.score", lambda *_: pytest.fail("scores were computed"))
    claims = tuple(claim_of(epoch=EPOCH - ago) for ago in range(3))
    assert {case.state for case in heard(Proofs(claims=claims), worked=Workbook()).judged.cases} == {"local"}


def test_claims_of_whoever_has_lost_its_voice_cost_no_scores(monkeypatch):
    """Else it could have every node compute all scores again and again, by another claim for each refresh."""
    claim = claim_of()
    lost = {
        bytes([number]) * 32: Ruling(
            bytes([number]) * 32, ACCUSER, ACCUSED, EPOCH - 1, number, claim_of(lane=number).chunk, State.REJECTED,
            "Of 7 holders of the blocks 7 found the work right.", claim.t,
        )
        for number in range(3)
    }  # fmt: skip
    monkeypatch.setattr("dht.standing.hearing.score", lambda *_: pytest.fail("scores were computed"))
    proofs = Proofs(claims=(claim, claim_of(lane=8, number=1)))
    assert [case.state for case in heard(proofs, settled=lost).judged.cases] == ["rejected"] * 3 + ["ignored"] * 2
    monkeypatch.setattr("dht.standing.hearing.score", scored := Mock(side_effect=score))
    heard(Proofs(claims=(claim_of(t=claim.t - 1),)), settled=lost)
    assert scored.called, "what was signed before the third was rejected is heard"


def test_claims_that_nobody_needs_to_look_at_cost_no_scores_once_that_is_known(monkeypatch):
    claim = claim_of()
    town = play([claim, claim_of(number=1, t=claim.t + 1)], lambda *_: DOWN, court=COURT, appeals=False)
    first = heard(tried(town))
    assert [case.state for case in first.judged.cases] == ["rejected", "ignored"]
    monkeypatch.setattr("dht.standing.hearing.score", lambda *_: pytest.fail("scores were computed"))
    assert heard(tried(town), settled=first.settled).judged == first.judged
