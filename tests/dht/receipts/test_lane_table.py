"""Lanes that a client may take again: taken once, whole, and only those put back."""

import sqlite3

import pytest

from dht.identity import Identity
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
