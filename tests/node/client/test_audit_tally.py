"""What was judged becomes one record of each session and slot, and standing counts it."""

from dataclasses import replace

import pytest

from dht.audit import Audit, Finding
from dht.identity import Identity
from dht.records import seal
from dht.reputation import OpenFail, Pass, score
from dht.rules import DEFAULT_RULES
from dht.standing.gathering import evidence_of
from dht.standing.proofs import Judged, Proofs
from dht.standing.workbook import Workbook
from dht.validation import parse_envelope
from node.client.audit_book import AuditResult, Measured, Outcome
from node.client.audit_opening import Given, Opening
from node.client.audit_tally import AuditTally
from node.client.route import Stage
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST, receipt

PROVIDER, OTHER, CONSUMER, AUDITOR = (Identity.ephemeral() for _ in range(4))
SESSION, CALIBRATION, T = bytes(range(16)), bytes(range(32)), EPOCH_BEGAN + 90


def result(outcome=Outcome.PASS, index=0, median=10, *, provider=PROVIDER, session=SESSION, **changes):
    made = receipt(provider, CONSUMER)
    nothing = Given(0, "float32", (1, 64, 1), b"")
    opening = Opening(
        MANIFEST, Stage(provider.peer_id, 0, 4, ()), "", "float32", made.profile, "float32", session, 0, index, 0, 64,
        (), None, nothing, (nothing,), (), seal(made, provider, CONSUMER).envelope, b"", b"", b"", {},
    )  # fmt: skip
    owner = provider.peer_id if outcome is Outcome.FAIL else ""
    measured = Measured(median, 2 * median, 3 * median, CALIBRATION)
    found = AuditResult(provider.peer_id, session, 0, index, outcome, "", owner, opening, measured=measured)
    return replace(found, **changes)


def taken(*results, epoch=EPOCH, t=T):
    tally = AuditTally(AUDITOR.peer_id)
    for each in results:
        tally.enter(each, EPOCH)
    return tally.take(epoch, t)


def test_a_record_says_what_was_found_of_which_receipt_and_is_valid():
    (audit,) = taken(result())
    assert (audit.auditor, audit.provider, audit.consumer) == (AUDITOR.peer_id, PROVIDER.peer_id, CONSUMER.peer_id)
    assert (audit.finding, audit.num_chunks, audit.epoch, audit.t) == (Finding.PASS, 1, EPOCH, T)
    assert (audit.median_ppm, audit.upper_ppm, audit.max_ppm, audit.calibration) == (10, 20, 30, CALIBRATION)
    assert audit.slot == receipt(PROVIDER, CONSUMER).slot
    assert Audit.from_body(audit.to_body()) == audit
    _, signed = parse_envelope(seal(audit, AUDITOR).envelope, DEFAULT_RULES)
    assert signed.record.objection(DEFAULT_RULES, float(T)) is None


def test_of_one_session_the_worst_chunk_stands_for_all_and_their_number_is_counted():
    (audit,) = taken(result(index=0), result(index=1, median=40), result(index=2, median=20))
    assert (audit.num_chunks, audit.index, audit.median_ppm) == (3, 1, 40)
    (audit,) = taken(result(Outcome.FAIL, 5, median=30), result(index=6, median=90))
    assert (audit.finding, audit.index, audit.num_chunks) == (Finding.FAIL, 5, 2)


@pytest.mark.parametrize(
    "unsaid",
    [
        result(Outcome.INCONCLUSIVE),
        result(Outcome.NOT_AUDITABLE),
        result(Outcome.FAIL, measured=None),  # It has not opened what it signed for.
        result(opening=None),
    ],
)
def test_what_says_neither_or_was_not_run_again_is_in_no_record(unsaid):
    assert taken(unsaid) == []


def test_what_was_taken_is_not_new_until_more_comes_or_nobody_has_kept_it():
    tally = AuditTally(AUDITOR.peer_id)
    tally.enter(result(), EPOCH)
    first = tally.take(EPOCH, T)
    assert not tally.has_news
    assert tally.take(EPOCH, T) == []
    tally.give_back(first)
    assert tally.take(EPOCH, T) == first
    tally.enter(result(index=1), EPOCH)
    (more,) = tally.take(EPOCH, T + 1)
    assert (more.num_chunks, more.t, more.subkey) == (2, T + 1, first[0].subkey)
    assert more.expires_s(DEFAULT_RULES) > first[0].expires_s(DEFAULT_RULES), "so that it takes its place"


def test_what_is_published_after_an_epochs_end_is_of_the_epoch_that_it_is_signed_in_and_the_next_counts_anew():
    tally = AuditTally(AUDITOR.peer_id)
    tally.enter(result(), EPOCH)
    (late,) = tally.take(EPOCH + 1, EPOCH_BEGAN + 21601)
    assert (late.epoch, late.num_chunks) == (EPOCH + 1, 1)
    tally.enter(result(index=1), EPOCH + 2)
    (anew,) = tally.take(EPOCH + 2, EPOCH_BEGAN + 2 * 21600)
    assert anew.num_chunks == 1
    assert tally.take(EPOCH + 4, EPOCH_BEGAN + 4 * 21600) == []
    assert not tally._entries


def test_sessions_and_servers_have_a_record_each():
    audits = taken(result(), result(session=bytes(16)), result(Outcome.FAIL, provider=OTHER))
    assert len({audit.subkey for audit in audits}) == 3
    assert {audit.provider for audit in audits if audit.finding is Finding.FAIL} == {OTHER.peer_id}


def test_standing_counts_a_pass_for_its_server_and_a_fail_against_it():
    audits = taken(result(), result(Outcome.FAIL, provider=OTHER))
    found = evidence_of(Workbook(), Proofs(audits=tuple(audits)), Judged(), EPOCH)
    assert found.passes == (Pass(AUDITOR.peer_id, PROVIDER.peer_id, EPOCH),)
    assert found.open_fails == (OpenFail(AUDITOR.peer_id, OTHER.peer_id),)
    scores = score(found, [AUDITOR.peer_id], EPOCH)
    assert scores.standing(PROVIDER.peer_id).score > scores.standing(OTHER.peer_id).score == 0
