"""What a ledger keeps, what it refuses, and what becomes of it when its file is damaged."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dht.errors import BadRecord, Contradiction, LedgerDamaged, LedgerNotWritten, SeqsSpent
from dht.identity import Identity
from dht.receipts import ledger_file, receipt_table
from dht.receipts.ledger import Ledger
from dht.receipts.ledger_file import LedgerFile
from dht.receipts.receipt_rows import check_own, complaint
from dht.receipts.reservation_table import MAX_UNSIGNED_ENDS, UnsignedEnd
from dht.records import Envelope, seal
from dht.rules import DEFAULT_RULES, Rules
from dht.work import MAX_SEQ, WorkKind
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, envelope, made, spoil
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST, announcement

ME = OWN.peer_id
SLOT = made().slot


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def kept(ledger, own=ME):
    return [signed.envelope for signed in ledger.newest(own)]


# ---------------------------------------------------------------------------------------------------------- receipts


def test_a_newcomer_keeps_nothing_and_its_first_receipt_is_there_after_a_restart(path):
    with Ledger.open(path) as ledger:
        assert (ledger.owners(), ledger.newest(ME), ledger.notices) == ([], [], [])
        assert ledger.append(ME, envelope())
    with Ledger.open(path) as ledger:
        assert (kept(ledger), ledger.owners(), ledger.notices) == ([envelope()], [ME], [])


def test_the_newest_of_each_slot_counts_whatever_the_order(path):
    with Ledger.open(path) as ledger:
        for seq in (1, 3, 2):
            assert ledger.append(ME, envelope(seq=seq))
        ledger.append(ME, envelope(lane=8))
        ledger.append(ME, envelope(work_kind=WorkKind.PREFILL))
        ledger.append(ME, envelope(CONSUMER, OWN))
        found = [(signed.record.slot, signed.record.seq) for signed in ledger.newest(ME)]
        assert found == sorted(found)
        assert sorted(seq for _, seq in found) == [1, 1, 1, 3]
        assert ledger.newest_of(ME, SLOT).record.seq == 3
        assert ledger.newest_of(ME, made(lane=9).slot) is None


def test_a_receipt_that_is_kept_already_is_not_kept_twice(path):
    with Ledger.open(path) as ledger:
        assert [ledger.append(ME, envelope()) for _ in range(2)] == [True, False]
        assert ledger.verify() == (1, [])


def test_another_body_with_the_same_number_is_refused(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
        with pytest.raises(Contradiction):
            ledger.append(ME, envelope(amount=65))
        assert kept(ledger) == [envelope()]


def test_what_both_have_not_signed_is_refused(path):
    body = made().to_body()
    by_both = (OWN.sign(2, body), CONSUMER.sign(2, body))
    others = seal(made(OTHER, CONSUMER), OTHER, CONSUMER).envelope
    bad = [
        Envelope(2, body, signatures).to_bytes() for signatures in ((), by_both[:1], (by_both[0],) * 2, by_both[::-1])
    ]
    bad += [others, seal(announcement(OWN), OWN).envelope, b"", bytes(500), Envelope(3, body, by_both).to_bytes()]
    with Ledger.open(path) as ledger:
        for data in bad:
            with pytest.raises(BadRecord):
                ledger.append(ME, data)
        outcomes = ledger.append_all([(ME, bad[0]), (ME, envelope()), (ME, others)])
        assert [type(outcome) for outcome in outcomes] == [BadRecord, bool, BadRecord]
        assert kept(ledger) == [envelope()]


def test_rows_cannot_be_changed_or_deleted(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
    with sqlite3.connect(path) as raw:
        for statement, why in (("DELETE FROM receipts", "newest"), ("UPDATE receipts SET seq = 9", "never changed")):
            with pytest.raises(sqlite3.IntegrityError, match=why):
                raw.execute(statement)
    raw.close()


def test_each_own_peer_id_sees_its_own(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
        ledger.append(CONSUMER.peer_id, envelope(OTHER, CONSUMER))
        assert kept(ledger) == [envelope()]
        assert kept(ledger, CONSUMER.peer_id) == [envelope(OTHER, CONSUMER)]
        assert ledger.owners() == sorted([ME, CONSUMER.peer_id])


def test_history_counts_what_one_consumer_has_signed_for(path):
    with Ledger.open(path) as ledger:
        for seq in (1, 2, 3):
            ledger.append(ME, envelope(seq=seq))
        ledger.append(ME, envelope(lane=8))
        ledger.append(ME, envelope(work_kind=WorkKind.PREFILL, amount=100))
        ledger.append(ME, seal(replace(made(lane=9), work_kind=WorkKind.RELAY, work=64), OWN, CONSUMER).envelope)
        ledger.append(ME, envelope(CONSUMER, OWN))
        ledger.append(ME, envelope(OWN, OTHER))
        amounts = {WorkKind.DECODE: 3 * 64 + 64, WorkKind.PREFILL: 100, WorkKind.RELAY: 64}
        assert ledger.history_of(ME, CONSUMER.peer_id) == amounts
        assert ledger.history_of(ME, Identity.ephemeral().peer_id) == {}


def test_changes_since_a_moment_leave_out_what_was_counted_before(path):
    later = EPOCH_BEGAN + 1000
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope(seq=1))
        ledger.append(ME, envelope(seq=2, t_last=later))
        ledger.append(ME, envelope(lane=8))
        (change,) = ledger.changes(ME, later)
        assert change.counted()[:2] == (64, 256)
        assert sorted(change.counted()[0] for change in ledger.changes(ME)) == [64, 128]
        assert [signed.record.seq for signed in ledger.newest(ME, later)] == [2]


def test_a_ledger_in_memory_does_the_same(tmp_path):
    with Ledger.open(None) as ledger:
        assert [ledger.reserve(ME, SLOT, n) for n in (1, 1, 40)] == [1, 2, 40]
        assert ledger.append(ME, envelope())
        assert kept(ledger) == [envelope()]
    assert list(tmp_path.iterdir()) == []


def checked_rows(monkeypatch):
    """Note whose receipts are checked, and of which epoch."""
    checked = []

    def noting(row):
        checked.append((row.own, row.columns[0]))
        return complaint(row)

    monkeypatch.setattr("dht.receipts.sound_rows.complaint", noting)
    return checked


def of_epoch(epoch):
    begins = DEFAULT_RULES.start_of(epoch)
    return {"epoch": epoch, "t_first": begins + 60, "t_last": begins + 62}


def test_what_counts_is_verified_when_the_ledger_is_opened_and_the_rest_when_it_is_read(path, monkeypatch):
    past = EPOCH - DEFAULT_RULES.window_epochs - 2
    with Ledger.open(path) as ledger:
        for epoch in (past, EPOCH - 1, EPOCH):
            ledger.append(ME, envelope(**of_epoch(epoch)))
        ledger.append(CONSUMER.peer_id, envelope(OTHER, CONSUMER))
    checked = checked_rows(monkeypatch)
    now = {"clock": lambda: EPOCH_BEGAN + 100.0}
    with Ledger.open(path, own=ME, **now) as ledger:
        assert sorted(checked) == [(ME, EPOCH - 1), (ME, EPOCH)]
        assert len(ledger.newest(ME)) == 3
        assert len(checked) == 3, "what is old is checked when it is read, and nothing twice"
    checked.clear()
    with Ledger.open(path, **now):
        assert sorted(checked) == sorted([(ME, EPOCH - 1), (ME, EPOCH), (CONSUMER.peer_id, EPOCH)])
    checked.clear()
    short = Rules(epoch_s=DEFAULT_RULES.epoch_s, window_epochs=0)
    with Ledger.open(path, own=ME, rules=short, **now) as ledger:
        assert checked == [(ME, EPOCH)]
        assert ledger.verify() == (4, [])


@pytest.mark.parametrize("of", ["sound_rows.complaint", "ledger.check_own"])
def test_numbers_are_given_while_signatures_are_checked(path, monkeypatch, of):
    checking, go_on = threading.Event(), threading.Event()

    def slow(real):
        def check(*arguments):
            checking.set()
            assert go_on.wait(20)
            return real(*arguments)

        return check

    with Ledger.open(path) as ledger, ThreadPoolExecutor(2) as threads:
        ledger.append(ME, envelope())
        monkeypatch.setattr(f"dht.receipts.{of}", slow(complaint if of.endswith("complaint") else check_own))
        asked = threads.submit(lambda: (ledger.newest(ME), ledger.append(ME, envelope(seq=2))))
        assert checking.wait(20)
        try:
            assert threads.submit(ledger.reserve, ME, made(lane=9).slot).result(timeout=10) == 1
            assert not asked.done()
        finally:
            go_on.set()
        assert asked.result(timeout=20)[1]


def test_a_row_that_has_become_another_while_it_was_checked_is_not_set_aside(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
        (row,) = ledger._store.read(lambda db: receipt_table.page(db, 0))
        assert not ledger._rows._set_aside(row._replace(envelope=b"of before"), "damaged")
        assert (ledger.set_aside(), ledger.notices, kept(ledger)) == ([], [], [envelope()])
        assert ledger._rows._set_aside(row, "damaged")
        assert [finding.row for finding in ledger.set_aside()] == [1]


# ----------------------------------------------------------------------------------------------------------- numbers


def test_no_number_is_given_twice_and_each_is_on_the_disk_before(path):
    with Ledger.open(path) as ledger, sqlite3.connect(path) as raw:
        given = [ledger.reserve(ME, SLOT, asked) for asked in (1, 2, 2, 1, 30, 31, 5)]
        assert given == [1, 2, 3, 4, 30, 31, 32]
        for _ in range(40):
            number = ledger.reserve(ME, SLOT)
            assert raw.execute("SELECT up_to FROM reservations").fetchall()[0][0] >= number
    raw.close()


def test_a_write_is_forced_once_in_sixteen_numbers(path, monkeypatch):
    written = []
    plain = ledger_file.LedgerFile.write
    monkeypatch.setattr(
        ledger_file.LedgerFile,
        "write",
        lambda self, work, *, durable=False: (written.append(durable), plain(self, work, durable=durable))[1],
    )
    with Ledger.open(path) as ledger:
        written.clear()
        assert [ledger.reserve(ME, SLOT, n) for n in range(1, 33)] == list(range(1, 33))
        assert written == [True, True]


def test_reserved_numbers_are_forced_to_the_disk_and_receipts_are_not(path):
    with Ledger.open(path) as ledger:
        forced = []
        ledger._store._file.connection.set_trace_callback(
            lambda said: forced.append(in_force()) if said.startswith("BEGIN") else None
        )

        def in_force():
            return ledger._store._file.connection.execute("PRAGMA synchronous").fetchone()[0]

        ledger.reserve(ME, SLOT)
        ledger.append(ME, envelope())
        ledger.raise_floor()
    assert forced == [2, 1, 2], "FULL, NORMAL, FULL: as the transaction begins, so before anything is signed"


def test_after_a_crash_numbers_go_on_above_the_block(path):
    crashed = Ledger.open(path)
    crashed.reserve(ME, SLOT, 3)
    with Ledger.open(path) as ledger:
        assert ledger.reserve(ME, SLOT, 4) == 19
        assert ledger.reserve(ME, made(lane=8).slot, 4) == 4
        assert ledger.reserve(ME, made(epoch=EPOCH + 1).slot) == 1
    crashed.close()


def test_a_receipt_that_is_kept_uses_up_its_number(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope(seq=100))
        assert ledger.reserve(ME, SLOT) == 101


def test_two_processes_are_never_given_the_same(path):
    with Ledger.open(path) as one, Ledger.open(path) as two:
        given = [ledger.reserve(ME, SLOT) for _ in range(40) for ledger in (one, two)]
        assert len(set(given)) == 80


def test_a_lane_without_numbers_is_named(path):
    with Ledger.open(path) as ledger:
        assert ledger.reserve(ME, SLOT, MAX_SEQ) == MAX_SEQ
        with pytest.raises(SeqsSpent, match="another lane"):
            ledger.reserve(ME, SLOT)


def test_an_identity_from_another_machine_starts_far_above(path):
    with Ledger.open(path) as ledger:
        ledger.raise_floor()
        assert ledger.reserve(ME, SLOT) == MAX_SEQ // 2 + 1
        assert ledger.reserve(CONSUMER.peer_id, SLOT) == 1  # who consumes draws lanes anew


# ------------------------------------------------------------------------------------------------------------- notes


def test_who_did_not_sign_is_remembered_within_bounds(path, monkeypatch):
    ends = [UnsignedEnd(CONSUMER.peer_id, False, MANIFEST, 16 + n, EPOCH_BEGAN + n) for n in range(5)]
    monkeypatch.setattr("dht.receipts.reservation_table.MAX_UNSIGNED_ENDS", 3)
    with Ledger.open(path) as ledger:
        for end in ends:
            ledger.note_unsigned_end(ME, end)
        ledger.note_unsigned_end(CONSUMER.peer_id, replace(ends[0], peer=ME))
        assert ledger.unsigned(ME) == ends[2:]
        assert ledger.unsigned(ME, EPOCH_BEGAN + 4) == ends[4:]
        assert ledger.owners() == sorted([ME, CONSUMER.peer_id])
    assert MAX_UNSIGNED_ENDS > 1000


def test_names_of_models_are_remembered(path):
    with Ledger.open(path) as ledger:
        for name in ("old", "gpt2"):
            ledger.note_model(MANIFEST, name)
        assert ledger.model_names() == {MANIFEST: "gpt2"}


# ------------------------------------------------------------------------------------------------------------ damage


def test_a_row_whose_signature_no_longer_fits_is_set_aside_and_had_again(path):
    with Ledger.open(path) as ledger:
        for seq in (1, 2):
            ledger.append(ME, envelope(seq=seq))
    signature = Envelope.from_bytes(envelope(seq=2)).signatures[1]
    spoil(path, signature, bytes([signature[0] ^ 1]))
    with Ledger.open(path, clock=lambda: EPOCH_BEGAN + 100.0) as ledger:
        assert [finding.reason for finding in ledger.set_aside()] == ["a signature is not its author's"]
        assert len(ledger.notices) == 1
        assert kept(ledger) == [envelope(seq=1)]
        repaired = ledger.repair(ME, [envelope(seq=1), envelope(seq=2), envelope(seq=1, amount=65), b"junk"])
        assert (repaired.added, repaired.known, repaired.refused) == (1, 1, 1)
        assert repaired.contradictions == (envelope(seq=1, amount=65),)
        assert kept(ledger) == [envelope(seq=2)]
        assert ledger.verify() == (2, [])


def test_an_older_damaged_row_is_found_by_a_whole_check(path, monkeypatch):
    monkeypatch.setattr("dht.receipts.receipt_table.PAGE", 1)
    with Ledger.open(path) as ledger:
        for seq in (1, 2):
            ledger.append(ME, envelope(seq=seq))
    signature = Envelope.from_bytes(envelope(seq=1)).signatures[0]
    spoil(path, signature, bytes([signature[0] ^ 1]))
    with Ledger.open(path) as ledger:
        assert ledger.set_aside() == []
        num, findings = ledger.verify()
        assert (num, [finding.row for finding in findings]) == (2, [1])
        assert ledger.set_aside() == findings


def change_rows(path, what):
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER receipts_stay_as_they_are")
        raw.execute(f"UPDATE receipts SET {what}")
        raw.execute("CREATE TRIGGER receipts_stay_as_they_are BEFORE UPDATE ON receipts BEGIN SELECT 1; END")
    raw.close()


@pytest.mark.parametrize(
    "what",
    ["amount = 10000", "seq = 9, lane = 3", "consumer = 77", "work_kind = 99", "own = 77", "t_last = 2, epoch = 1"],
)
def test_a_row_that_differs_from_its_envelope_is_made_again_from_it(path, what):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope(seq=2))
        ledger.note_unsigned_end(ME, UnsignedEnd(CONSUMER.peer_id, False, MANIFEST, 16, EPOCH_BEGAN))
    change_rows(path, what)
    with Ledger.open(path, since_s=0.0) as ledger:
        ledger.verify()
        assert kept(ledger) == [envelope(seq=2)]
        assert ledger.history_of(ME, CONSUMER.peer_id) == {WorkKind.DECODE: 128}
        (notice,) = ledger.notices
        assert "made again from its signed envelope" in notice
        assert (len(ledger.set_aside()), ledger.lost()) == (1, [])
        assert not ledger.append(ME, envelope(seq=2))
    with Ledger.open(path, since_s=0.0) as ledger:
        assert (ledger.verify(), ledger.notices) == ((1, []), [])


def test_a_receipt_is_made_again_also_where_another_one_asks_for_its_number(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
        change_rows(path, "amount = 10000")
        with pytest.raises(Contradiction):
            ledger.append(ME, envelope(amount=65))
        assert kept(ledger) == [envelope()]


def test_what_cannot_be_made_again_is_named_until_something_stands_for_it(path):
    for seq in (1, 2):
        with Ledger.open(path) as ledger:
            ledger.append(ME, envelope(seq=seq))
        signature = Envelope.from_bytes(envelope(seq=seq)).signatures[1]
        spoil(path, signature, bytes([signature[0] ^ 1]))
        with Ledger.open(path) as ledger:
            ledger.verify()
            assert [finding.row for finding in ledger.lost()] == [*range(1, seq + 1)]
    with Ledger.open(path) as ledger:
        assert ledger.notices == []
        assert len(ledger.lost()) == 2
        ledger.repair(ME, [envelope(seq=2)])
        assert (len(ledger.set_aside()), ledger.lost()) == (2, [])


def test_a_changed_reservation_makes_numbers_go_on_far_above(path):
    with Ledger.open(path) as ledger:
        ledger.reserve(ME, SLOT, 300)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE reservations SET up_to = 3")
    raw.close()
    with Ledger.open(path) as ledger:
        assert ledger.reserve(ME, SLOT) == MAX_SEQ // 2 + 1
        assert "reservations" in ledger.notices[0]


def filled(path, num=200):
    with Ledger.open(path) as ledger:
        for seq in range(1, num + 1):
            ledger.append(ME, envelope(seq=seq))
        ledger.reserve(ME, SLOT, num + 1)
        ledger.note_model(MANIFEST, "gpt2")
        ledger.note_unsigned_end(ME, UnsignedEnd(CONSUMER.peer_id, False, MANIFEST, 16, EPOCH_BEGAN))


def truncate(path):
    """parts of it have been overwritten or cut off"""
    os.truncate(path, path.stat().st_size // 2)


def garble_pages(path):
    """parts of it have been overwritten or cut off"""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(size // 3, size * 2 // 3, 4096):
            file.seek(at // 4096 * 4096)
            file.write(b"\xa5" * 4096)


def garble_header(path):
    """its beginning has been overwritten"""
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)


def be_another_database(path):
    """it is some other database"""
    path.unlink()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE cats (name TEXT)")
    raw.close()


def lose_a_table(path):
    """its reservations are missing"""
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TABLE reservations")
    raw.close()


@pytest.mark.parametrize("damage", [truncate, garble_pages, garble_header, be_another_database, lose_a_table])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun_with_what_can_be_read(path, damage):
    filled(path)
    damage(path)
    damaged = path.read_bytes()
    with Ledger.open(path, clock=lambda: EPOCH_BEGAN) as ledger:
        (notice,) = ledger.notices
        assert damage.__doc__ in notice
        assert "\n" not in notice
        (aside,) = path.parent.glob("*.damaged-*[0-9]")
        assert aside.name in notice
        assert aside.read_bytes() == damaged
        assert ledger.reserve(ME, SLOT) > MAX_SEQ // 2
        num, findings = ledger.verify()
        assert findings == []
        assert f"with {num} receipts" in notice
        if damage is lose_a_table:
            assert (num, ledger.model_names()) == (200, {MANIFEST: "gpt2"})
            assert len(ledger.unsigned(ME)) == 1
        repaired = ledger.repair(ME, [envelope(seq=seq) for seq in range(1, 201)])
        assert (repaired.added, repaired.known) == (200 - num, num)
        assert kept(ledger) == [envelope(seq=200)]
    with Ledger.open(path) as ledger:
        assert ledger.notices == []
        assert ledger.reserve(ME, SLOT) > MAX_SEQ // 2 + 16


def test_much_of_a_garbled_file_is_read_again(path):
    filled(path)
    garble_pages(path)
    with Ledger.open(path) as ledger:
        assert 50 <= ledger.verify()[0] < 200


def test_an_emptied_file_makes_numbers_go_on_far_above(path):
    filled(path, 2)
    os.truncate(path, 0)
    with Ledger.open(path) as ledger:
        assert ledger.reserve(ME, SLOT) == MAX_SEQ // 2 + 1
        (notice,) = ledger.notices
        assert "it has been emptied" in notice
        assert ledger.is_new
    with Ledger.open(path) as ledger:
        assert ledger.notices == []
        assert ledger.reserve(ME, SLOT) > MAX_SEQ // 2 + 1
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == b""


def test_a_file_that_another_process_is_just_making_has_not_been_emptied(path):
    path.touch()
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    with Ledger.open(path) as ledger:
        assert ledger.notices == []
    os.close(lock)


def test_a_crash_between_moving_aside_and_beginning_anew_forgets_nothing(path):
    for suffix in ("", "-wal"):
        path.with_name(f"{path.name}.damaged-20261121-101112{suffix}").write_bytes(b"")
    LedgerFile(path).close()  # as far as a process came that crashed again
    with Ledger.open(path) as ledger:
        assert ledger.reserve(ME, SLOT) == MAX_SEQ // 2 + 1


def test_nobody_else_can_read_a_ledger(path):
    with Ledger.open(path) as ledger:
        ledger.append(ME, envelope())
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_ledger_says_whether_it_was_begun_now(path):
    for is_new in (True, False):
        with Ledger.open(path) as ledger:
            assert ledger.is_new is is_new


def test_a_second_damage_goes_further_up(path):
    for expected in (1 / 2, 3 / 4, 7 / 8):
        filled(path, 2)
        garble_header(path)
        with Ledger.open(path) as ledger:
            assert ledger.reserve(ME, SLOT) == MAX_SEQ * expected + 1


def test_a_file_that_is_damaged_while_it_is_open_is_replaced(path):
    filled(path)
    with Ledger.open(path) as ledger:
        assert [ledger.reserve(ME, SLOT, 300), ledger.reserve(CONSUMER.peer_id, SLOT, 316)] == [300, 316]
        garble_pages(path)
        ledger._store._file.connection.execute("PRAGMA shrink_memory")  # what SQLite still knew of it
        assert ledger.verify()[0] < 200
        assert ledger.append(ME, envelope(seq=201))
        assert ledger.reserve(ME, SLOT) == 301  # this process knows what it has given
        assert [ledger.reserve(CONSUMER.peer_id, SLOT, n) for n in (331, 1)] == [331, 332]
        assert len(ledger.notices) == 1
    assert Ledger.open(path).newest_of(ME, SLOT).record.seq == 201


def test_a_damaged_file_that_another_process_has_open_stays(path, monkeypatch):
    filled(path, 2)
    garble_header(path)
    lock = os.open(f"{path}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    monkeypatch.setattr(ledger_file, "PATIENCE_S", 0.1)
    with pytest.raises(LedgerDamaged, match="another process has it open; stop every node"):
        Ledger.open(path)
    assert list(path.parent.glob("*.damaged-*")) == []
    os.close(lock)
    with Ledger.open(path) as ledger:
        assert len(ledger.notices) == 1


# ---------------------------------------------------------------------------------------------------- disks and homes


def refuse_growth(ledger):
    pages = ledger._store._file.connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._store._file.connection.execute(f"PRAGMA max_page_count = {pages}")


def test_what_a_full_disk_does_not_take_is_written_when_there_is_space(path):
    with Ledger.open(path) as ledger:
        refuse_growth(ledger)
        appended = 0
        with pytest.raises(LedgerNotWritten, match=r"disk is full with the ledger .*free some space"):  # noqa: PT012
            while True:
                appended += 1
                ledger.append(ME, envelope(seq=appended))
        with pytest.raises(LedgerNotWritten):  # noqa: PT012
            for lane in range(1000):
                ledger.reserve(ME, made(lane=lane).slot)
        ledger._store._file.connection.execute("PRAGMA max_page_count = 100000")
        assert ledger.append(ME, envelope(seq=appended + 1))
        assert ledger.verify() == (appended + 1, [])


def test_a_disk_that_turns_read_only_gets_one_clear_sentence(path):
    with Ledger.open(path) as ledger:
        ledger._store._file.connection.execute("PRAGMA query_only = ON")
        for act in (lambda: ledger.append(ME, envelope()), lambda: ledger.reserve(ME, SLOT)):
            with pytest.raises(LedgerNotWritten, match="cannot be written; make its directory writable"):
                act()
        assert ledger.newest(ME) == []


def test_a_home_that_cannot_be_made_gets_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerNotWritten, match="cannot be used"):
        Ledger.open(tmp_path / "file" / "ledger.sqlite")


def test_a_newer_program_s_ledger_is_left_alone(path):
    filled(path, 1)
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 2")
    raw.close()
    with pytest.raises(LedgerNotWritten, match="version 2, this program knows 1"):
        Ledger.open(path)
    assert list(path.parent.glob("*.damaged-*")) == []


READ_ONLY_HOME = """
import os
import sys
from pathlib import Path
from dht.errors import LedgerDamaged, LedgerNotWritten
from dht.receipts.ledger import Ledger
path = Path(sys.argv[1])
os.setgid(65534)
os.setuid(65534)
try:
    Ledger.open(path)
except LedgerNotWritten as error:
    print("refused:", error)
try:
    with Ledger.open_to_read(path) as ledger:
        print("read:", [len(ledger.newest(own)) for own in ledger.owners()])
except LedgerDamaged as error:
    print("damaged:", error)
except LedgerNotWritten as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_read_only_home_can_be_read_and_says_why_it_is_not_written():
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        home.mkdir()
        filled(home / "ledger.sqlite", 3)
        for path in (Path(name), home, *home.iterdir()):
            path.chmod(0o755)
        refused, read = as_nobody(home / "ledger.sqlite")
        assert "make its directory writable" in refused
        assert read == "read: [1]"
        garble_header(home / "ledger.sqlite")
        assert "make its directory writable: it is then moved aside" in as_nobody(home / "ledger.sqlite")[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
@pytest.mark.parametrize("of_nobody", [True, False])
def test_a_ledger_whose_own_mode_shuts_its_user_out_is_named(of_nobody):
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        home.mkdir()
        path = home / "ledger.sqlite"
        filled(path, 1)
        for each in (Path(name), home):
            each.chmod(0o777)
        path.chmod(0)
        if of_nobody:
            for each in home.iterdir():
                os.chown(each, 65534, 65534)
        else:
            path.with_name(f"{path.name}.lock").chmod(0o666)
        mend = f"may not be read and written by this user; allow it: chmod u+rw {path}"
        assert [mend in line for line in as_nobody(path)] == [True, True]


def test_a_directory_in_a_ledger_s_place_is_called_one(path):
    path.mkdir()
    for open_ in (Ledger.open, Ledger.open_to_read):
        with pytest.raises(LedgerNotWritten, match="is a directory, and should be the file of the ledger; move it"):
            open_(path)


def as_nobody(path):
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY_HOME, str(path)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_looking_into_a_home_without_a_ledger_makes_none(path):
    with Ledger.open_to_read(path) as ledger:
        assert ledger.owners() == []
    assert list(path.parent.iterdir()) == []
