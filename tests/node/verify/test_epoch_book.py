"""One sentence and one event for each server and epoch, which say what was found."""

from node.client.audit_book import Outcome
from node.verify.canary_plan import Held
from node.verify.epoch_book import EpochBook

ONE, OTHER = Held("one", 0, 2), Held("other", 2, 4)


def test_epochs_that_have_ended_are_reported_once_and_the_one_that_runs_is_not():
    book = EpochBook()
    for epoch, held, outcome in [(7, OTHER, Outcome.PASS), (7, ONE, Outcome.PASS), (8, ONE, Outcome.PASS)]:
        book.enter(epoch, held, outcome)
    assert [(report.epoch, report.held.peer_id) for report in book.take(8)] == [(7, "one"), (7, "other")]
    assert book.take(8) == []
    assert [report.epoch for report in book.take()] == [8]


def test_what_was_found_is_said_in_a_sentence_and_a_fail_is_new_once():
    book = EpochBook()
    assert not book.enter(7, ONE, Outcome.PASS)
    assert book.enter(7, ONE, Outcome.FAIL)
    assert not book.enter(7, ONE, Outcome.FAIL)
    assert not book.enter(7, ONE, Outcome.INCONCLUSIVE)
    book.broke(7, ONE)
    (report,) = book.take()
    assert report.in_words() == (
        "Epoch 7: one (blocks 0:2) FAILED; chunks that passed: 1, that failed: 2, that said nothing: 1; "
        "sessions broken off: 1."
    )
    assert report.as_fields() == {
        "epoch": 7, "peer_id": "one", "blocks": "0:2",
        "pass": 1, "fail": 2, "inconclusive": 1, "not_auditable": 0, "broken": 1,
    }  # fmt: skip


def test_who_was_not_checked_has_not_passed():
    book = EpochBook()
    book.broke(7, ONE)
    book.enter(7, OTHER, Outcome.NOT_AUDITABLE)
    said = [report.in_words() for report in book.take()]
    assert said == [
        "Epoch 7: one (blocks 0:2) was not checked; sessions broken off: 1.",
        "Epoch 7: other (blocks 2:4) is undecided; chunks that passed: 0, that failed: 0, that said nothing: 1.",
    ]
