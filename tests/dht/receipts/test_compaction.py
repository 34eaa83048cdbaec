"""What a ledger lets go of, and what it never does."""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dht.receipts.compaction import first_kept_epoch
from dht.receipts.ledger import Ledger
from dht.receipts.totals import totals_of
from dht.rules import Rules
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, envelope, made, spoil

ROOT = Path(__file__).parents[3]
ME = OWN.peer_id
RULES = Rules(epoch_s=100, window_epochs=3)
NOW_EPOCH = 50
OLD = (10, 11, 46)
KEPT = (47, 49, 50)
NUM_KILLS = 12


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def opened(path, epoch=NOW_EPOCH):
    return Ledger.open(path, clock=lambda: RULES.start_of(epoch) + 50.0)


def of(epoch, seq, lane=7, consumer=CONSUMER):
    return {
        "epoch": epoch,
        "seq": seq,
        "lane": lane,
        "consumer": consumer,
        "t_first": 0,
        "t_last": RULES.start_of(epoch) + seq,
    }


def filled(path, epochs=(*OLD, *KEPT), seqs=5, lanes=(7, 8)):
    """A ledger with several receipts in each slot, each with its number reserved."""
    with opened(path) as ledger:
        for epoch in epochs:
            for lane in lanes:
                ledger.reserve(ME, made(**of(epoch, 1, lane)).slot)
                ledger.append_all([(ME, envelope(**of(epoch, seq, lane))) for seq in range(1, seqs + 1)])


def rows(path):
    with sqlite3.connect(path) as raw:
        held = raw.execute("SELECT epoch, lane, seq FROM receipts ORDER BY epoch, lane, seq").fetchall()
    raw.close()
    return held


def test_of_epochs_past_the_window_the_newest_of_each_slot_stays_and_of_others_everything(path):
    filled(path)
    with opened(path) as ledger:
        before = ledger.newest(ME), totals_of(ledger.changes(ME)), ledger.history_of(ME, CONSUMER.peer_id)
        assert ledger.compact(RULES) == len(OLD) * 2 * 4
        assert (ledger.newest(ME), totals_of(ledger.changes(ME)), ledger.history_of(ME, CONSUMER.peer_id)) == before
        assert ledger.compact(RULES) == 0
        assert ledger.verify() == (len(OLD) * 2 + len(KEPT) * 10, [])
    assert [row for row in rows(path) if row[0] in OLD] == [(epoch, lane, 5) for epoch in OLD for lane in (7, 8)]
    assert len(rows(path)) == len(OLD) * 2 + len(KEPT) * 10
    with opened(path) as ledger:
        assert (ledger.newest(ME), ledger.notices) == (before[0], [])


def test_no_number_that_was_reserved_is_ever_given_again(path):
    highest = {}
    with opened(path) as ledger:
        for epoch in (*OLD, *KEPT):
            for lane, num in ((7, 1), (8, 40), (9, 17)):
                slot = made(**of(epoch, 1, lane)).slot
                highest[slot] = max(ledger.reserve(ME, slot) for _ in range(num))
        ledger.append(ME, envelope(**of(NOW_EPOCH, 1)))
        ledger.compact(RULES)
        ledger.compact(RULES)
    with sqlite3.connect(path) as raw:
        (num,) = raw.execute("SELECT count(*) FROM reservations").fetchone()
        assert num == len(OLD) + 3 * len(KEPT), "one for each epoch past the window"
    raw.close()
    with opened(path) as ledger:
        assert ledger.notices == []
        for slot, seq in highest.items():
            assert ledger.reserve(ME, slot) > seq
        fresh = made(**of(OLD[0], 1, lane=99)).slot
        assert ledger.reserve(ME, fresh) > 40, "a lane of which nothing is left may be any that was there"
        ledger.compact(RULES)
        assert ledger.reserve(ME, fresh) > 41


def test_a_clock_that_is_ahead_for_a_while_makes_nothing_old(path):
    filled(path)
    with opened(path, epoch=10**6) as ledger:
        ledger.compact(RULES)
    assert len(rows(path)) == len(OLD) * 2 + len(KEPT) * 10
    assert (
        first_kept_epoch(50, RULES.start_of(10**6), RULES) == first_kept_epoch(10**6, RULES.start_of(50), RULES) == 47
    )
    assert first_kept_epoch(0, 0.0, RULES) == 0


def test_where_the_newest_is_damaged_the_one_before_it_stays(path):
    filled(path, epochs=(10, NOW_EPOCH), seqs=3, lanes=(7,))
    spoil(path, envelope(**of(10, 3))[-30:], bytes(30))
    with opened(path) as ledger:
        assert ledger.compact(RULES) == 1
        assert [signed.record.seq for signed in ledger.newest(ME)] == [2, 3]
    assert [row[2] for row in rows(path) if row[0] == 10] == [2, 3]


def test_a_newest_receipt_can_be_dropped_by_nobody(path):
    filled(path, epochs=(10, NOW_EPOCH), seqs=2, lanes=(7,))
    with sqlite3.connect(path) as raw, pytest.raises(sqlite3.IntegrityError, match="newest"):
        raw.execute("DELETE FROM receipts WHERE epoch = 10")
    raw.close()
    assert len(rows(path)) == 4


def test_what_another_process_has_remembered_of_a_row_is_not_taken_for_a_later_one(path):
    filled(path, epochs=(NOW_EPOCH,), seqs=1, lanes=(7,))
    with opened(path) as remembering, opened(path) as compacting:
        compacting.append(ME, envelope(**of(10, 2)))
        compacting.append(ME, envelope(**of(10, 1)))  # the last row, which newer ones will replace
        remembering.newest_of(ME, made(**of(10, 1)).slot)
        remembering.verify()
        remembering.newest(ME, RULES.start_of(10) + 1, RULES)
        assert compacting.compact(RULES) == 1
        other = envelope(**of(NOW_EPOCH, 9, consumer=OTHER))
        compacting.append(ME, other)
        assert [signed.envelope for signed in remembering.newest(ME) if signed.record.seq == 9] == [other]


def test_the_file_gives_back_what_it_no_longer_needs(path):
    filled(path, epochs=(10, NOW_EPOCH), seqs=400, lanes=(7,))
    before = path.stat().st_size
    with opened(path) as ledger:
        assert ledger.compact(RULES) == 399
    assert path.stat().st_size < 0.7 * before


def kill_while_compacting(path, num_steps):
    """Start a child, and kill it in or right after one of its transactions."""
    command = [sys.executable, "-m", "tests.dht.receipts.compacting_child", str(path), "100", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert len(child.stdout.read(num_steps)) == num_steps
        child.send_signal(signal.SIGKILL)


def test_a_kill_in_the_middle_loses_no_newest_receipt_and_no_number(tmp_path):
    whole, lanes = tmp_path / "whole.sqlite", 60
    filled(whole, epochs=(10, NOW_EPOCH), seqs=3, lanes=range(lanes))
    chance = random.Random(3)
    with opened(whole) as ledger:
        newest = ledger.newest(ME)
    num_in_the_middle = 0
    for turn in range(NUM_KILLS):
        path = tmp_path / f"{turn}.sqlite"
        shutil.copy(whole, path)
        kill_while_compacting(path, chance.randrange(1, lanes))
        with opened(path) as ledger:
            assert ledger.notices == []
            assert ledger.newest(ME) == newest
            num, findings = ledger.verify()
            assert findings == []
            num_in_the_middle += 4 * lanes < num < 6 * lanes
            for signed in chance.sample(newest, 5):
                assert ledger.reserve(ME, signed.record.slot) > 3
            ledger.compact(RULES)
            assert ledger.newest(ME) == newest
            assert len(rows(path)) == 4 * lanes
    assert num_in_the_middle > NUM_KILLS // 2
