"""Claims become convictions and rejections by receipts of the time, and what was settled outlives these."""

import itertools
from unittest.mock import Mock

import pytest

from dht.judgement.duties import duties
from dht.judgement.outcomes import Ruling, State
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
    UP,
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


def heard(proofs, *, worked=None, now_s=END_S, settled=None):
    worked = book() if worked is None else worked
    return hear(worked, proofs, [ANCHOR], RULES, DEFAULT_SCORE_RULES, now_s, settled or {})


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
