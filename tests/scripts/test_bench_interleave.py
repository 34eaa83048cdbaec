"""Which steps of the decoders count as before a prefill, and which as during it."""

from bench.jobs import Decoded, Prefilled
from bench_interleave import NUM_FIRST_STEPS, Round


def round_of(*times_s):
    """One decoder whose tokens came at ``times_s``, and a prefill from 10 to 14."""
    started = [-1.0] * (1 + NUM_FIRST_STEPS)
    return Round([Decoded([], [*started, *times_s])], Prefilled(0, 4, 5), Prefilled(10, 14, 5))


#   prefill                      |-----------------|
#   steps       7    8    9    9.5           13.5    14.5     15.5
#   quiet        1    1   0.5
#   during                        4               1


def test_steps_that_touch_the_prefill_are_during_it_and_only_earlier_ones_are_normal():
    measured = round_of(7, 8, 9, 9.5, 13.5, 14.5, 15.5)
    assert measured.steps_s(quiet=True) == [1, 1, 0.5]
    assert measured.steps_s(quiet=False) == [4, 1]
    assert measured.normal_s == 1
    assert measured.longest(quiet=False) == 4
    assert measured.longest(quiet=True) == 1


def test_the_p99_lies_between_the_last_two_of_a_hundred_steps():
    measured = round_of(8, 9, *(10 + 0.03 * n for n in range(1, 100)), 20)
    steps = sorted(measured.steps_s(quiet=False))
    assert len(steps) == 100
    assert steps[-2] <= measured.p99(quiet=False) * measured.normal_s <= steps[-1]
