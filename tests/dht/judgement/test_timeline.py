"""The phases of a trial are those that the page draws, and follow each other whatever an epoch takes."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contest import TRIAL_EPOCHS
from dht.judgement import timeline
from dht.judgement.timeline import MAX_UNITS, PHASES, UNITS_PER_EPOCH, Act, Timeline, phase_of
from dht.rules import Rules


def drawing() -> str:
    columns = range(MAX_UNITS + 1)
    lines = ["".ljust(13) + "".join(str(each // 10) if each % 10 == 0 else " " for each in columns).rstrip()]
    lines.append("".ljust(13) + "".join(str(each % 10) for each in columns))
    for phase in PHASES:
        row = "".join("=" if phase.start <= each < phase.end else "." if each == phase.end else " " for each in columns)
        lines.append(f"{phase.level} {phase.act.value}".ljust(13) + row.rstrip())
    return "\n".join(" " * 4 + line for line in lines)


def test_the_phases_are_those_that_are_drawn():
    assert drawing() in timeline.__doc__
    page = (Path(__file__).parents[3] / "docs" / "trust.md").read_text()
    assert drawing() in page


def test_a_phase_begins_when_all_that_was_signed_in_the_one_before_has_arrived():
    for before, after in itertools.pairwise(PHASES):
        assert after.start == before.settled
    assert PHASES[-1].settled == MAX_UNITS
    for level in (1, 2, 3):
        assert phase_of(level, Act.COMMIT).settled == phase_of(level, Act.REVEAL).start


@given(st.integers(1, 2**24), st.integers(0, 2**32))
def test_every_phase_has_a_second_at_least_and_a_long_trial_ends_in_time(epoch_s, t):
    clock = Timeline.of(t, Rules(epoch_s=epoch_s))
    assert all(clock.opens_s(phase) < clock.ends_s(phase) < clock.settles_s(phase) for phase in PHASES)
    if epoch_s >= UNITS_PER_EPOCH:
        assert clock.ends_all_s <= t + (TRIAL_EPOCHS - 1) * epoch_s


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: f"{phase.level} {phase.act.value}")
def test_what_is_signed_or_seen_too_late_or_too_early_does_not_count(phase):
    clock = Timeline.of(1_000_000, Rules())
    first, last = clock.opens_s(phase), clock.ends_s(phase)
    assert [clock.is_timely(phase, t, None) for t in (first - 1, first, last - 1, last)] == [False, True, True, False]
    settled = clock.settles_s(phase)
    assert [clock.is_timely(phase, first, seen) for seen in (first, settled - 1, settled)] == [True, True, False]
    assert clock.open_phase(first) == phase == clock.open_phase(last - 0.5)
    assert clock.open_phase(last) is None


def test_a_claim_that_is_published_late_leaves_the_accused_no_time():
    clock = Timeline.of(1_000_000, Rules())
    seen = (None, 1_000_000, 1_000_000 + 1799, 1_000_000 + 1800)
    assert [clock.is_claim_timely(each) for each in seen] == [True, True, True, False]
