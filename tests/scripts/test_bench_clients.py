"""How the windows of a round become rates, ratios and shares."""

import pytest
from bench.windows import Reading, Window, cpu_ms_per_token, tokens_per_s
from bench_clients import cores_of_others, slowest_share, summary, whole_tokens_per_s


def window(num_tokens, elapsed_s, *, servers_s=0.0, machine_s=0.0, whole_s=1.0, equal=True):
    """A window that began at 100 s."""
    before = Reading(100.0, {"servers": 7.0}, 50.0)
    after = Reading(100.0 + elapsed_s, {"servers": 7.0 + servers_s}, 50.0 + machine_s)
    return Window(before, after, num_tokens, whole_s, sum(num_tokens) + 1, equal)


def test_rates_are_of_all_clients_and_all_windows():
    windows = [window([10, 20], 2.0, whole_s=4.0), window([30, 40], 3.0, whole_s=6.0)]
    assert tokens_per_s(windows) == 100 / 5
    assert whole_tokens_per_s(windows) == 102 / 10


def test_the_slowest_client_is_told_over_all_windows():
    assert slowest_share([window([10, 20], 1), window([30, 30], 1)]) == 40 / 50


def test_processor_time_is_shared_among_tokens_and_the_rest_is_others():
    windows = [window([10, 10], 2.0, servers_s=0.5, machine_s=1.5)]
    assert cpu_ms_per_token(windows) == {"servers": 25.0}
    assert cores_of_others(windows) == 0.5


def test_ratios_are_within_a_round_and_one_wrong_token_is_enough():
    alone = [[window([10], 1.0)], [window([20], 1.0)]]
    four = [[window([10] * 4, 1.0)], [window([10] * 4, 1.0, equal=False)]]
    figures = summary(four, alone)
    assert (figures["ratio_min"], figures["ratio"], figures["ratio_max"]) == (2.0, 3.0, 4.0)
    assert figures["tokens_per_s"] == 40
    assert figures["clients"] == 4
    assert figures["tokens_equal"] is False
    assert summary(alone, alone)["ratio"] == pytest.approx(1.0)
