"""What is said of snapshots."""

import pytest

from dht.identity import Identity
from dht.receipts.newcomer import Beginning, Verdict
from dht.receipts.spot_checks import Compared, SpotCheck
from dht.snapshot import NO_SCORES, Snapshot
from node.run.reading_words import contradiction_in_words, nothing_found, plan_in_words, verdict_in_words

PEER = Identity.ephemeral().peer_id
NONE = Compared(num_keys=16)
RECORD = Snapshot(PEER, 3, 9, 1200, bytes(32), NO_SCORES)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            Verdict(RECORD, SpotCheck(Compared(16), Compared(16, 9, 400, 0))),
            "is used: of 400 receipts that the DHT holds at 32 keys",
        ),
        (Verdict(RECORD, SpotCheck(Compared(16), Compared(16, 9, 400, 4))), "it lacks 4."),
        (
            Verdict(RECORD, SpotCheck(Compared(16, 9, 350, 5), Compared(16, 9, 50)), is_false=True),
            "is false and is not used: of 400 receipts",
        ),
        (Verdict(RECORD, SpotCheck(NONE, NONE)), "is not used: the DHT holds too little at 32 keys drawn at random"),
        (Verdict(RECORD, None, "it is gone"), "cannot be had and is not used: it is gone."),
        (Verdict(RECORD, None, "it sends others", is_false=True), "is false and is not used: it sends others."),
    ],
)
def test_a_snapshot_is_named_with_its_publisher_and_what_became_of_it(verdict, words):
    said = verdict_in_words(verdict)
    assert said.startswith(f"The snapshot of {PEER} (1,200 receipts of epochs 3 to 9) ")
    assert words in said


def test_what_is_read_from_the_dht_is_counted():
    said = plan_in_words(Beginning((), (), (PEER,), (8, 9)))
    assert said.startswith("Reading from the DHT what 1 peer did in 2 epochs (2 keys)")


def test_a_peer_that_contradicts_itself_is_named():
    assert contradiction_in_words(PEER).startswith(f"{PEER} has signed receipts that contradict each other")


def test_the_wait_for_a_receipt_is_said_in_seconds():
    assert "at least every 600 s" in nothing_found(600.0)
    assert "at least every 1 s" in nothing_found(0.2)
