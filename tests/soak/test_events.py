from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.soak.events import HARMS, plan_events
from tests.soak.test_churn import SEED

seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_seed_gives_the_same_events_again(seed):
    assert plan_events(seed, 50, 3) == plan_events(seed, 50, 3)


@given(seeds)
def test_a_server_is_harmed_once_and_then_mended_in_the_way_that_fits(seed):
    harmed = {}
    for event in plan_events(seed, 60, 3):
        if event.act in HARMS:
            assert event.server not in harmed
            harmed[event.server] = event.act
        else:
            assert event.act == HARMS[harmed.pop(event.server)]


@given(seeds)
def test_a_span_is_without_servers_for_one_beat_at_most(seed):
    harmed, was_gone = set(), False
    for event in plan_events(seed, 60, 3):
        (harmed.add if event.act in HARMS else harmed.discard)(event.server)
        is_gone = any({span, span + 3} <= harmed for span in range(3))
        assert not (was_gone and is_gone)
        was_gone = is_gone


def test_all_harms_come_in_twenty_minutes_and_a_whole_span_is_gone_now_and_then():
    acts = Counter(event.act for event in plan_events(1, 240, 3))
    assert set(acts) == {*HARMS, *HARMS.values()}


def test_the_short_soak_shows_every_harm():
    assert {event.act for event in plan_events(SEED, 24, 3)} == {*HARMS, *HARMS.values()}
