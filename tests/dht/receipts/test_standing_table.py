"""What a ledger remembers of consumers who have not always signed."""

import pytest

from dht.receipts import standing_table
from dht.receipts.ledger import Ledger
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN

ME, PEER = OWN.peer_id, CONSUMER.peer_id


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_unsigned_ends_add_up_and_are_taken_back_one_by_one_and_outlive_a_restart(path):
    nums = []
    for change in (1, 1, 1, -1, -1, -1, -1, 1):
        with Ledger.open(path) as ledger:
            ledger.change_unsigned(ME, PEER, change)
            nums.append(ledger.num_unsigned(ME, PEER))
    assert nums == [1, 2, 3, 2, 1, 0, 0, 1]


def test_each_own_peer_and_each_consumer_has_a_number_of_its_own(path):
    with Ledger.open(path) as ledger:
        ledger.change_unsigned(ME, PEER, 1)
        others = [(ME, OTHER.peer_id), (OTHER.peer_id, PEER)]
        assert [ledger.num_unsigned(*pair) for pair in others] == [0, 0]


def test_more_than_sixteen_are_not_remembered(path):
    with Ledger.open(path) as ledger:
        for _ in range(40):
            ledger.change_unsigned(ME, PEER, 1)
        assert ledger.num_unsigned(ME, PEER) == standing_table.MAX_UNSIGNED


def test_who_was_met_longest_ago_is_forgotten_first(path, monkeypatch):
    monkeypatch.setattr(standing_table, "MAX_STANDINGS", 2)
    now_s = [0]
    with Ledger.open(path, clock=lambda: now_s[0]) as ledger:
        peers = [OWN.peer_id, CONSUMER.peer_id, OTHER.peer_id]
        for peer in peers:
            now_s[0] += 1
            ledger.change_unsigned(ME, peer, 1)
        assert [ledger.num_unsigned(ME, peer) for peer in peers] == [0, 1, 1]
