"""No process of an identity signs a number that an earlier one may have signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.rules import MAX_SKEW_S, Rules
from dht.work import MAX_SEQ, Slot, WorkKind
from node.run.first_numbers import NUM_LEFT, LedgerByClock, first_number
from tests.dht.receipts.ledger_kit import CONSUMER, OWN

RULES = Rules()
ME = OWN.peer_id
EPOCH = 80_000
BEGAN_S = RULES.start_of(EPOCH)
SLOT = Slot(ME, CONSUMER.peer_id, EPOCH, 7, WorkKind.DECODE)


@given(st.floats(0, 21600), st.floats(1, 21600), st.floats(0, 20))
def test_who_begins_later_begins_above_all_that_others_signed_meanwhile(began_s, later_s, num_per_s):
    earlier = first_number(EPOCH, BEGAN_S + began_s, RULES)
    later = first_number(EPOCH, BEGAN_S + began_s + later_s, RULES)
    if began_s + later_s + MAX_SKEW_S < 21600:
        assert later >= earlier + int(num_per_s * later_s)
    assert earlier <= later <= MAX_SEQ - NUM_LEFT + 1


def test_who_begins_in_an_epoch_begins_above_all_that_is_signed_in_it_since_an_earlier_one():
    served_since_yesterday = first_number(EPOCH, BEGAN_S - 86_400, RULES)
    assert served_since_yesterday == 1
    assert first_number(EPOCH, BEGAN_S, RULES) > served_since_yesterday + 24 * 21600


def test_whose_clock_was_ahead_may_have_signed_in_the_next_epoch_already():
    assert first_number(EPOCH + 1, BEGAN_S + 21600 - MAX_SKEW_S + 1, RULES) > MAX_SEQ // 2
    assert first_number(EPOCH + 1, BEGAN_S + 21600 - MAX_SKEW_S - 1, RULES) == 1


def test_a_lane_has_numbers_left_however_late_it_begins():
    assert first_number(EPOCH - 5, BEGAN_S, RULES) == MAX_SEQ - NUM_LEFT + 1
    assert first_number(EPOCH, BEGAN_S + 21599.9, RULES) <= MAX_SEQ - NUM_LEFT + 1


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_ledger_gives_a_provider_numbers_from_there_on_and_a_consumer_those_it_asks_for(tmp_path, in_memory):
    with LedgerByClock.open(None if in_memory else tmp_path / "ledger.sqlite") as ledger:
        assert ledger.reserve(ME, SLOT) == 1, "nothing has begun"
        ledger.begin(RULES, BEGAN_S + 3600)
        first = first_number(EPOCH, BEGAN_S + 3600, RULES)
        assert [ledger.reserve(ME, SLOT), ledger.reserve_in_memory(ME, SLOT, 5)] == [first, first + 1]
        assert ledger.reserve(ME, SLOT, first + 40) == first + 40
        assert ledger.reserve(CONSUMER.peer_id, SLOT, 9) == 9
        assert ledger.reserve_in_memory(CONSUMER.peer_id, SLOT, 10) == 10
