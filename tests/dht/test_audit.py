"""What an audit and a calibration may say, and what nobody believes of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.audit import Audit, Finding
from dht.calibration import MAX_FILE_BYTES, MAX_RATIO_MILLI, MAX_THRESHOLDS, Calibration, Threshold
from dht.codec import encode
from dht.errors import BadRecord
from dht.identity import Identity
from dht.records import seal
from dht.rules import DEFAULT_RULES
from dht.work import MAX_ERROR_PPM, MAX_SEQ, WorkKind
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST
from tests.dht.test_validation import as_stored
from tests.dht.test_work import refusal

PROVIDER, CONSUMER, AUDITOR = (Identity.ephemeral() for _ in range(3))
AUDIT = Audit(
    auditor=AUDITOR.peer_id,
    epoch=EPOCH,
    provider=PROVIDER.peer_id,
    consumer=CONSUMER.peer_id,
    receipt_epoch=EPOCH - 1,
    lane=7,
    work_kind=WorkKind.DECODE,
    receipt=bytes(32),
    manifest=MANIFEST,
    start=0,
    end=4,
    profile=bytes(32),
    session=bytes(16),
    segment=0,
    index=3,
    num_chunks=2,
    finding=Finding.PASS,
    median_ppm=8_000,
    upper_ppm=10_000,
    max_ppm=11_000,
    calibration=bytes(32),
    t=EPOCH_BEGAN + 60,
)
ROW = Threshold("bfloat16", "int8", 4, 10, 20, 30, 40, 5, 1600)
CALIBRATION = Calibration(MANIFEST, AUDITOR.peer_id, EPOCH, 1, bytes(32), 1000, (ROW,), EPOCH_BEGAN + 60)

ppm = st.integers(0, MAX_ERROR_PPM)


@given(st.lists(ppm, min_size=3, max_size=3).map(sorted), st.sampled_from(Finding), st.sampled_from(WorkKind))
def test_an_audit_is_read_as_it_was_written(errors, finding, kind):
    median, upper, largest = errors
    made = replace(AUDIT, median_ppm=median, upper_ppm=upper, max_ppm=largest, finding=finding, work_kind=kind)
    assert Audit.from_body(made.to_body()) == made


def test_one_audit_of_a_session_stands_and_one_of_more_chunks_replaces_it():
    signed = seal(AUDIT, AUDITOR)
    assert refusal(as_stored(signed)) is None
    for change in ({"index": 4}, {"finding": Finding.FAIL}, {"receipt": b"r" * 32}, {"t": AUDIT.t + 1}):
        again = seal(replace(AUDIT, **change), AUDITOR)
        assert (again.key, again.subkey, again.expires_s) == (signed.key, signed.subkey, signed.expires_s)
    more = seal(replace(AUDIT, num_chunks=3), AUDITOR)
    assert more.subkey == signed.subkey
    assert more.expires_s > signed.expires_s
    for change in (
        {"session": b"s" * 16}, {"lane": 8}, {"provider": CONSUMER.peer_id, "consumer": PROVIDER.peer_id},
        {"receipt_epoch": EPOCH}, {"work_kind": WorkKind.PREFILL},
    ):  # fmt: skip
        assert replace(AUDIT, **change).subkey != signed.subkey


@pytest.mark.parametrize(
    "change",
    [
        {"auditor": PROVIDER.peer_id},
        {"consumer": PROVIDER.peer_id},
        {"start": 4},
        {"receipt_epoch": EPOCH + 1},
        {"median_ppm": 10_001},
        {"upper_ppm": 11_001},
        {"max_ppm": MAX_ERROR_PPM + 1},
        {"num_chunks": 0},
        {"session": bytes(15)},
    ],
)
def test_an_audit_that_contradicts_itself_is_refused(change):
    with pytest.raises(BadRecord):
        Audit.from_body(replace(AUDIT, **change).to_body())


@pytest.mark.parametrize(("at", "junk"), [(6, 0), (6, 7), (16, 0), (16, 3), (21, -1)])
def test_an_audit_of_an_unknown_kind_or_finding_is_refused(at, junk):
    fields = [
        AUDITOR.peer_id_bytes, EPOCH, PROVIDER.peer_id_bytes, CONSUMER.peer_id_bytes, EPOCH - 1, 7, 1, bytes(32),
        MANIFEST, 0, 4, bytes(32), bytes(16), 0, 3, 2, 1, 8_000, 10_000, 11_000, bytes(32), AUDIT.t,
    ]  # fmt: skip
    assert encode(fields) == AUDIT.to_body()
    fields[at] = junk
    with pytest.raises(BadRecord):
        Audit.from_body(encode(fields))


@pytest.mark.parametrize(("record", "change"), [(AUDIT, {"t": EPOCH_BEGAN - 121}), (CALIBRATION, {"t": 0})])
def test_an_audit_and_a_calibration_are_signed_in_their_epoch(record, change):
    assert refusal(as_stored(seal(record, AUDITOR))) is None
    assert refusal(as_stored(seal(replace(record, **change), AUDITOR))) == "outside its epoch"
    assert refusal(as_stored(seal(record, AUDITOR)), EPOCH_BEGAN - 121) == "from the future"


def test_the_longest_calibration_and_audit_fit():
    most = Threshold("w" * 16, "c" * 16, 4096, *[MAX_ERROR_PPM] * 5, MAX_RATIO_MILLI)
    rows = tuple(most._replace(num_blocks=4096 - MAX_THRESHOLDS + number) for number in range(MAX_THRESHOLDS))
    made = replace(CALIBRATION, epoch=2**32, seq=MAX_SEQ, file_bytes=MAX_FILE_BYTES, thresholds=rows, t=2**40)
    assert len(seal(made, AUDITOR).envelope) <= Calibration.MAX_BYTES
    large = replace(
        AUDIT, epoch=2**32, receipt_epoch=2**32, lane=2**32 - 1, start=4095, end=4096, segment=2**20, index=2**20,
        num_chunks=2**20, median_ppm=10**9, upper_ppm=10**9, max_ppm=10**9, t=2**40,
    )  # fmt: skip
    assert len(seal(large, AUDITOR).envelope) <= Audit.MAX_BYTES


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (ROW, ROW),
        (ROW._replace(num_blocks=8), ROW),
        (ROW._replace(median_fail_ppm=9),),
        (ROW._replace(upper_fail_ppm=19),),
        (ROW._replace(max_fail_ppm=29),),
        (ROW._replace(weights="w" * 17),),
        tuple(ROW._replace(num_blocks=1 + number) for number in range(MAX_THRESHOLDS + 1)),
    ],
)
def test_thresholds_that_exclude_each_other_or_stand_twice_are_refused(rows):
    with pytest.raises(BadRecord):
        Calibration.from_body(replace(CALIBRATION, thresholds=rows).to_body())


def test_a_span_takes_the_thresholds_of_its_length_or_the_next_longer_one():
    rows = tuple(ROW._replace(num_blocks=number, mean_ppm=number) for number in (1, 4, 8))
    made = replace(CALIBRATION, thresholds=(*rows, ROW._replace(weights="float32")))
    assert Calibration.from_body(made.to_body()) == made
    found = [made.threshold_for("bfloat16", "int8", length) for length in (1, 2, 4, 8, 9)]
    assert [row and row.num_blocks for row in found] == [1, 4, 4, 8, None]
    assert made.threshold_for("bfloat16", "float32", 1) is None


def test_a_newer_calibration_replaces_the_older_in_its_epoch():
    newer = replace(CALIBRATION, seq=2, file=b"f" * 32)
    assert newer.expires_s(DEFAULT_RULES) > CALIBRATION.expires_s(DEFAULT_RULES)
    assert seal(newer, AUDITOR).subkey == seal(CALIBRATION, AUDITOR).subkey == AUDITOR.peer_id_bytes


@pytest.mark.parametrize("record", [AUDIT, CALIBRATION])
@given(data=st.data())
def test_no_bytes_make_them_raise_anything_else(record, data):
    good = record.to_body()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.binary(min_size=1, max_size=2)) + good[at + 1 :]
    try:
        read = type(record).from_body(changed)
    except BadRecord:
        return
    assert read.to_body() == changed
