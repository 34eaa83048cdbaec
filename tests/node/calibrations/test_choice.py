"""Whoever reads the same records uses the same calibration, whatever others have written beside them."""

import itertools
from dataclasses import replace

import pytest

from dht.calibration import Calibration
from dht.identity import Identity
from node.calibrations.choice import Named, named_by
from tests.dht.test_audit import ROW

PRESENT, MANIFEST = 9, bytes(range(32))
A, B, C, STRANGER = sorted(Identity.ephemeral().peer_id for _ in range(4))
ANCHORS = (A, B, C)
LOW, HIGH = b"\x01" * 32, b"\x02" * 32


def record(signer, file=LOW, epoch=PRESENT, seq=1, **changes):
    return replace(Calibration(MANIFEST, signer, epoch, seq, file, 1000, (ROW,), epoch * 100), **changes)


def first(*records):
    """What is named first, in whatever order the records are read."""
    (found,) = {named_by(order, MANIFEST, ANCHORS, PRESENT)[0] for order in itertools.permutations(records)}
    return found


def test_what_most_anchors_name_is_used():
    named = first(record(A, LOW), record(B, HIGH, PRESENT - 5), record(C, HIGH, PRESENT - 7))
    assert named == Named(HIGH, 1000, (B, C))


def test_of_equally_many_the_newest_and_of_equally_new_ones_the_smaller_hash():
    assert first(record(A, LOW, PRESENT - 3), record(B, HIGH, PRESENT - 2)).file == HIGH
    assert first(record(A, LOW), record(B, HIGH)).file == LOW


def test_who_signs_first_in_an_epoch_changes_nothing():
    for one, other in itertools.product((PRESENT - 1, PRESENT), repeat=2):
        assert first(record(A, LOW, one), record(B, HIGH, other)).file == LOW
    assert first(record(A, LOW, PRESENT - 2), record(B, HIGH, PRESENT)).file == HIGH, "who has stopped is older"


@pytest.mark.parametrize("older", [{"seq": 1}, {"seq": 9, "epoch": PRESENT - 1}])
def test_of_one_anchor_the_newest_record_counts(older):
    assert first(record(A, LOW, **{"seq": 2} | older), record(A, HIGH, seq=2)) == Named(HIGH, 1000, (A,))


def test_nobody_else_has_a_say():
    strangers = [record(STRANGER, HIGH), record(B, HIGH, manifest=bytes(32))]
    assert first(record(A), *strangers) == Named(LOW, 1000, (A,))
    assert named_by(strangers, MANIFEST, ANCHORS, PRESENT) == ()
    assert named_by([record(A)], MANIFEST, (), PRESENT) == ()


def test_one_who_says_another_size_names_another_file():
    found = named_by([record(A), record(B), record(C, file_bytes=7)], MANIFEST, ANCHORS, PRESENT)
    assert found == (Named(LOW, 1000, (A, B)), Named(LOW, 7, (C,)))
