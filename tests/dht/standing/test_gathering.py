"""Which record becomes which evidence, and that none counts before it was signed."""

from dataclasses import replace

from dht.audit import Finding
from dht.contest import Contest
from dht.equivocation import find_equivocations
from dht.ident import Succession
from dht.identity import Identity
from dht.records import Envelope, seal
from dht.reputation import Conviction, OpenFail, Pass, Rejection, Succeeded, score
from dht.standing.gathering import evidence_of, until
from dht.standing.proofs import Judged, Proofs
from dht.standing.workbook import Workbook
from tests.dht.samples import EPOCH, EPOCH_BEGAN, receipt
from tests.dht.test_audit import AUDIT
from tests.dht.test_claim import CLAIM
from tests.dht.test_ruling import RULING

PROVIDER, CONSUMER, HEIR = (Identity.ephemeral() for _ in range(3))
FAIL = replace(AUDIT, finding=Finding.FAIL)
FAILED = OpenFail(AUDIT.auditor, AUDIT.provider)


NOTHING, UNJUDGED = Proofs(), Judged()


def evidence(proofs=NOTHING, judged=UNJUDGED, epoch=EPOCH, receipts=()):
    return evidence_of(Workbook(receipts), proofs, judged, epoch)


def test_a_pass_counts_for_its_provider_and_a_fail_stands_open_against_it():
    assert evidence(Proofs(audits=(AUDIT,))).passes == (Pass(AUDIT.auditor, AUDIT.provider, EPOCH),)
    found = evidence(Proofs(audits=(FAIL,)))
    assert (found.passes, found.open_fails) == ((), (FAILED,))


def test_of_two_audits_of_one_session_the_one_of_more_chunks_counts_whichever_comes_first():
    later = replace(FAIL, num_chunks=AUDIT.num_chunks + 1)
    for audits in ((AUDIT, later), (later, AUDIT)):
        found = evidence(Proofs(audits=audits))
        assert (found.passes, found.open_fails) == ((), (FAILED,))
    found = evidence(Proofs(audits=(FAIL, replace(AUDIT, num_chunks=AUDIT.num_chunks + 1))))
    assert (len(found.passes), found.open_fails) == (1, ())


def test_a_failed_audit_that_was_found_false_costs_its_author_nothing_any_more():
    assert evidence(Proofs(audits=(FAIL,)), Judged(refuted=frozenset({FAILED}))).open_fails == ()


def test_what_claims_came_to_is_taken_over():
    judged = Judged((Conviction("a", 3),), (Rejection("b", 4),), (OpenFail("c", "d"),))
    found = evidence(judged=judged)
    assert (found.convictions, found.rejections, found.open_fails) == judged[:3]


def test_who_signed_two_receipts_is_an_equivocator_and_has_no_score():
    one, other = (
        Envelope.from_bytes(seal(receipt(PROVIDER, CONSUMER, t_last=EPOCH_BEGAN + last), PROVIDER, CONSUMER).envelope)
        for last in (70, 71)
    )
    proofs = Proofs(equivocations=tuple(find_equivocations([one, other])))
    found = evidence(proofs, receipts=[receipt(PROVIDER, CONSUMER)])
    assert found.equivocators == {PROVIDER.peer_id, CONSUMER.peer_id}
    assert score(found, [CONSUMER.peer_id], EPOCH).standing(PROVIDER.peer_id).score == 0
    assert evidence(proofs, epoch=EPOCH - 1).equivocators == frozenset()


def test_an_heir_is_one_from_the_epoch_of_the_succession_on():
    proofs = Proofs(successions=(Succession(PROVIDER.peer_id, HEIR.peer_id, EPOCH),))
    assert evidence(proofs).successions == (Succeeded(PROVIDER.peer_id, HEIR.peer_id, EPOCH),)
    assert evidence(proofs, epoch=EPOCH - 1).successions == ()


def test_nothing_that_was_signed_after_an_epoch_is_left_when_its_end_is_looked_at():
    contest = Contest(PROVIDER.peer_id, EPOCH, CLAIM.hash, CLAIM.accuser, 1, CLAIM.t)
    late = replace(contest, t=EPOCH_BEGAN + 21600)
    settled_later = replace(RULING, settled_s=EPOCH_BEGAN + 21600)
    proofs = Proofs(audits=(AUDIT,), claims=(CLAIM,), contests=(contest, late), rulings=(RULING, settled_later))
    kept = until(proofs, EPOCH, EPOCH_BEGAN + 21600)
    assert (kept.audits, kept.claims, kept.contests) == ((AUDIT,), (CLAIM,), (contest,))
    assert kept.rulings == (RULING,)
    assert until(proofs, EPOCH - 1, EPOCH_BEGAN) == Proofs()
