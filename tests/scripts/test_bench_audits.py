"""The benchmark of audits compares rounds as they belong together, and judges the default rate."""

from types import SimpleNamespace

import bench_audits
import pytest


def window(num_tokens, elapsed_s, equal=True):
    return SimpleNamespace(num_tokens=[num_tokens], elapsed_s=elapsed_s, equal=equal)


def by_rate(slower, equal=True):
    windows = {rate: [window(100, 1.0), window(100, 2.0)] for rate in bench_audits.RATES}
    windows[0.02] = [window(100, slower), window(100, 2.0 * slower, equal)]
    return [bench_audits.summary(rate, windows) for rate in bench_audits.RATES]


def test_a_ratio_is_that_of_the_rounds_that_belong_together():
    plain, default, all_of_it = by_rate(1.25)
    assert (plain["ratio"], default["ratio"], all_of_it["ratio"]) == (1.0, 0.8, 1.0)


@pytest.mark.parametrize(("slower", "equal", "good"), [(1.0, True, True), (1.25, True, False), (1.0, False, False)])
def test_slower_answers_and_other_tokens_are_not_good(slower, equal, good):
    assert bench_audits.is_good(by_rate(slower, equal)) is good
