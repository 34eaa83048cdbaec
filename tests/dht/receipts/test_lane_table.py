"""Lanes that a client may take again: taken once, whole, and only those put back."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from dht.identity import Identity
from dht.receipts import continuity
from dht.receipts.lane_table import MAX_FREE_LANES, FreeLane
from dht.receipts.ledger import Ledger
from dht.work import Slot, WorkKind

OWN, OTHER, PROVIDER = (Identity.ephemeral().peer_id for _ in range(3))


def lane(number, provider=PROVIDER):
    return FreeLane(provider, bytes(32), 0, 4, bytes(range(32)), number)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_lanes_are_given_once_to_their_owner_and_nobody_else(path):
    with Ledger.open(path) as first, Ledger.open(path) as second:
        first.put_lanes(OWN, [lane(1), lane(2)])
        assert second.take_lanes(OTHER) == []
        assert second.take_lanes(OWN) == [lane(1), lane(2)]
        assert first.take_lanes(OWN) == []


def copied_back(path: Path) -> None:
    """Put a copy in the place of the file's contents: the name stays, and so does the inode."""
    path.write_bytes(path.read_bytes())


def replaced(path: Path) -> None:
    """Put a copy in the place of the file."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def left(path: Path) -> None:
    """Touch nothing."""


@pytest.mark.parametrize(("restore", "is_given"), [(copied_back, False), (replaced, False), (left, True)])
def test_lanes_of_a_file_that_was_put_back_are_nobody_s(path, restore, is_given, monkeypatch):
    monkeypatch.setattr(continuity, "SETTLING_S", 0)
    now_s = int(time.time()) + 2.0  # as if it had been written until just now
    with Ledger.open(path, clock=lambda: now_s) as ledger:
        ledger.put_lanes(OWN, [lane(1)])
    while time.time() < now_s + 0.1:
        time.sleep(0.05)
    restore(path)
    with Ledger.open(path, clock=lambda: now_s) as ledger:
        assert ledger.take_lanes(OWN) == ([lane(1)] if is_given else [])


@pytest.mark.parametrize(("later_s", "is_given"), [(600, True), (601, False), (-1, False)])
def test_lanes_are_kept_for_ten_minutes(path, later_s, is_given):
    began = int(time.time())
    with Ledger.open(path, clock=lambda: began) as ledger:
        ledger.put_lanes(OWN, [lane(1)])
    with Ledger.open(path, clock=lambda: began + later_s) as ledger:
        assert ledger.take_lanes(OWN) == ([lane(1)] if is_given else [])


@pytest.mark.parametrize("boot", [b"", bytes(16)])
def test_lanes_of_another_start_of_the_machine_or_of_none_are_nobody_s(path, boot, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(continuity, "boot_digest", lambda: boot)
        with Ledger.open(path) as ledger:
            ledger.put_lanes(OWN, [lane(1)])
            assert ledger.take_lanes(OWN) == ([lane(1)] if boot else [])
            ledger.put_lanes(OWN, [lane(1)])
    with Ledger.open(path) as ledger:
        assert ledger.take_lanes(OWN) == []


def test_so_many_are_remembered_and_no_more(path):
    with Ledger.open(path) as ledger:
        ledger.put_lanes(OWN, [lane(number) for number in range(MAX_FREE_LANES + 9)])
        ledger.put_lanes(OWN, [lane(1000)])
        taken = [free.number for free in ledger.take_lanes(OWN)]
    assert taken == [*range(10, MAX_FREE_LANES + 9), 1000]


@pytest.mark.parametrize("change", ["lane = 7", "provider = x'00'", "profile = 3", "end_block = 5", "checksum = ''"])
def test_a_lane_that_was_changed_by_something_else_is_not_taken(path, change):
    with Ledger.open(path) as ledger:
        ledger.put_lanes(OWN, [lane(1)])
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE free_lanes SET {change}")
    db.close()
    with Ledger.open(path) as ledger:
        assert ledger.take_lanes(OWN) == []


def test_numbers_written_ahead_in_a_lane_that_is_put_back_are_free_again_and_others_are_not(path):
    slots = [Slot(PROVIDER, OWN, 80_000, number, WorkKind.DECODE) for number in (1, 2)]
    with Ledger.open(path) as ledger:
        assert [ledger.reserve(OWN, slot) for slot in slots] == [1, 1]
        ledger.put_lanes(OWN, [lane(1)])
    with Ledger.open(path) as ledger:
        assert [ledger.reserve(OWN, slot) for slot in slots] == [1, 17]
