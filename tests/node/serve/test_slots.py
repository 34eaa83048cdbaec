"""Slots never overlap, what is free adds up, and what was given back can be leased again in one piece."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.serve.slots import PAGE, Slot, Slots


class SlotsMachine(RuleBasedStateMachine):
    """Keeps, beside ``Slots``, the owner of every single page."""

    @initialize(num_positions=st.integers(0, 40 * PAGE))
    def start(self, num_positions):
        self.slots = Slots(num_positions)
        self.pages = [None] * (num_positions // PAGE)
        self.leased = {}
        self.num_leases = 0

    def longest_gap(self):
        longest = current = 0
        for owner in self.pages:
            current = current + 1 if owner is None else 0
            longest = max(longest, current)
        return longest

    @rule(num_positions=st.integers(1, 12 * PAGE))
    def lease(self, num_positions):
        wanted = (num_positions + PAGE - 1) // PAGE
        assert self.slots.can_lease(num_positions) == (wanted <= self.longest_gap())
        if not self.slots.can_lease(num_positions):
            with pytest.raises(AssertionError):
                self.slots.lease(num_positions)
            return
        slot = self.slots.lease(num_positions)
        assert slot.size == wanted * PAGE
        assert slot.start % PAGE == 0
        first = slot.start // PAGE
        assert self.pages[first : first + wanted] == [None] * wanted, "the slot overlaps another or leaves the cache"
        self.num_leases += 1
        self.pages[first : first + wanted] = [self.num_leases] * wanted
        self.leased[self.num_leases] = slot

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data):
        owner = data.draw(st.sampled_from(sorted(self.leased)))
        self.slots.release(self.leased.pop(owner))
        self.pages = [None if page == owner else page for page in self.pages]

    @precondition(lambda self: self.leased)
    @rule()
    def release_all(self):
        for slot in self.leased.values():
            self.slots.release(slot)
        self.leased.clear()
        self.pages = [None] * len(self.pages)
        assert self.slots.largest == self.slots.free == self.slots.total

    @invariant()
    def what_is_free_adds_up(self):
        if hasattr(self, "slots"):
            assert self.slots.total == len(self.pages) * PAGE
            assert self.slots.free == self.pages.count(None) * PAGE
            assert self.slots.largest == self.longest_gap() * PAGE


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=80, stateful_step_count=40)


def test_slots_are_placed_first_fit_in_whole_pages():
    slots = Slots(10 * PAGE + 7)
    assert slots.total == 10 * PAGE
    first, second, third = slots.lease(1), slots.lease(3 * PAGE), slots.lease(PAGE + 1)
    assert [first, second, third] == [Slot(0, PAGE), Slot(PAGE, 3 * PAGE), Slot(4 * PAGE, 2 * PAGE)]
    slots.release(second)
    assert slots.lease(2 * PAGE) == Slot(PAGE, 2 * PAGE)
    assert slots.lease(2 * PAGE) == Slot(6 * PAGE, 2 * PAGE), "the gap of one page is too small"


@pytest.mark.parametrize("again", [0, 1])
def test_a_slot_that_is_given_back_twice_is_noticed(again):
    slots = Slots(4 * PAGE)
    leased = [slots.lease(PAGE), slots.lease(PAGE)]
    slots.release(leased[0])
    slots.release(leased[1])
    with pytest.raises(AssertionError, match="free already"):
        slots.release(leased[again])


def test_a_cache_of_less_than_a_page_leases_nothing():
    slots = Slots(PAGE - 1)
    assert (slots.total, slots.free, slots.largest) == (0, 0, 0)
    assert not slots.can_lease(1)
