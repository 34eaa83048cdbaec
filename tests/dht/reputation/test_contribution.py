"""Priority under load: monotone, the same everywhere, and no gift for new names nor for what one signs for oneself."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.reputation import (
    ONE,
    Contribution,
    Conviction,
    Evidence,
    Succeeded,
    Work,
    contributions,
    priority,
    score,
)
from tests.dht.reputation.drawn import ANCHORS, EPOCH, everyone_works_for_everyone

UNIT = 4096
HONEST = Evidence(works=everyone_works_for_everyone(work=UNIT))
work = st.integers(0, 10**9)


def contributed(evidence):
    return contributions(score(evidence, ANCHORS, EPOCH), evidence)


@given(work, work)
def test_it_is_the_curve(provided, consumed):
    ratio = (consumed / UNIT + 6) / (provided / UNIT + 3)
    expected = 1 / (1 + math.exp(min(700, 3 * ratio - 6)))
    assert abs(priority(provided, consumed) / ONE - expected) < 1e-9


@given(work, work, work)
def test_it_never_rises_with_what_was_taken_nor_falls_with_what_was_given(provided, consumed, more):
    here = priority(provided, consumed)
    assert priority(provided, consumed + more) <= here <= priority(provided + more, consumed)
    assert 0 <= here <= ONE


@given(work, st.integers(1, 10**9))
def test_a_new_name_is_worth_a_half_and_what_it_takes_makes_it_less_from_the_first_unit_on(consumed, provided):
    assert priority(0, 0) == ONE // 2 >= priority(0, consumed)
    assert priority(0, UNIT) < ONE * 3 // 10
    assert priority(provided, min(provided, consumed)) >= ONE // 2


def test_who_consumed_much_and_gave_nothing_comes_last():
    assert priority(0, 10**12) == 0


def test_work_is_counted_on_both_sides_and_halved_with_age():
    assert contributed(HONEST)["h"] == Contribution(7 * UNIT, 7 * UNIT)
    old = tuple(entry._replace(epoch=EPOCH - 28) for entry in HONEST.works)
    assert contributed(replace(HONEST, works=HONEST.works + old))["h"] == Contribution(
        7 * UNIT * 3 // 2, 7 * UNIT * 3 // 2
    )
    late = tuple(entry._replace(epoch=EPOCH + 1) for entry in HONEST.works)
    assert contributed(replace(HONEST, works=HONEST.works + late)) == contributed(HONEST)


@given(st.integers(1, 10**12))
def test_a_free_rider_that_signs_for_itself_under_other_names_has_given_nothing(signed):
    ring = tuple(Work(f"sybil {i}", "rider", EPOCH, signed) for i in range(3))
    taken = (Work("rider", "c", EPOCH, 50 * UNIT),)
    found = contributed(replace(HONEST, works=HONEST.works + ring + taken))["rider"]
    assert found == Contribution(0, 50 * UNIT)
    assert priority(*found) == 0


def test_while_nobody_is_trusted_receipts_are_all_there_is():
    alone = Evidence(works=(Work("c", "h", EPOCH, 5 * UNIT),))
    assert not score(alone, ANCHORS, EPOCH).has_flow
    assert contributed(alone) == {"h": Contribution(5 * UNIT, 0), "c": Contribution(0, 5 * UNIT)}


def test_what_a_convict_has_done_counts_as_little_as_its_score_and_what_an_equivocator_has_done_not_at_all():
    given = contributed(HONEST)["h"].provided
    assert contributed(replace(HONEST, convictions=(Conviction("h", EPOCH),)))["h"].provided == given // 16
    assert contributed(replace(HONEST, equivocators=frozenset({"h"})))["h"].provided == 0


@given(st.integers(1, 10**12))
def test_one_trusted_friend_cannot_sign_for_more_than_counts_for_the_score(signed):
    found = contributed(replace(HONEST, works=(*HONEST.works, Work("c", "rider", EPOCH, signed))))["rider"]
    assert found.provided == min(signed, 60 * UNIT)


def test_an_heir_has_given_and_taken_what_the_old_one_did():
    evidence = Evidence(
        works=everyone_works_for_everyone(epoch=EPOCH - 1, work=UNIT), successions=(Succeeded("h", "new", EPOCH),)
    )  # fmt: skip
    found = contributed(evidence)
    assert found["new"].consumed > 6 * UNIT
    assert "h" not in found
