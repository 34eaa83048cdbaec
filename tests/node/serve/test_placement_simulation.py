"""What placement is worth in a swarm whose servers come and go: a small run of scripts/simulate_placement.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

from simulate_placement import simulate
from simulated.world import Newcomer, World, newcomers, optimum

SMALL = World(num_servers=40, num_blocks=16, max_count=6, warm_up_h=0.5, hours=2.0)
SEEDS = (0, 1, 2)


def figures_of(world, seed, *names):
    return simulate(world, seed, names=names)["policies"]


@pytest.fixture(scope="module")
def by_seed():
    return [figures_of(SMALL, seed, "stay", "no_hysteresis", "in_turn") for seed in SEEDS]


def mean(by_seed, policy, figure):
    return sum(found[policy][figure] for found in by_seed) / len(by_seed)


def test_few_moves_bring_the_bottleneck_nearer_to_the_optimum_than_none(by_seed):
    share = mean(by_seed, "in_turn", "share_of_optimum")
    assert 0.75 < share < 1
    assert share > mean(by_seed, "stay", "share_of_optimum") + 0.05
    assert 0 < mean(by_seed, "in_turn", "moves_per_server_hour") < 0.4
    assert mean(by_seed, "stay", "moves") == 0


def test_moves_leave_no_block_without_a_server(by_seed):
    assert mean(by_seed, "in_turn", "missing_share") == 0


def test_without_hysteresis_servers_move_much_more_for_little(by_seed):
    assert mean(by_seed, "no_hysteresis", "moves") > 3 * mean(by_seed, "in_turn", "moves")
    gained = mean(by_seed, "no_hysteresis", "share_of_optimum") - mean(by_seed, "in_turn", "share_of_optimum")
    assert gained < 0.05


def test_servers_that_move_as_they_like_leave_the_swarm_out_of_service():
    found = figures_of(
        World(num_servers=40, num_blocks=16, max_count=6, warm_up_h=0.4, hours=0.2), 0, "naive", "in_turn"
    )
    assert found["naive"]["moves_per_server_hour"] > 20 * max(0.2, found["in_turn"]["moves_per_server_hour"])
    assert found["naive"]["share_of_optimum"] < 0.2 * found["in_turn"]["share_of_optimum"]


def test_the_same_seed_gives_the_same_figures_and_another_one_others():
    world = World(num_servers=20, num_blocks=8, max_count=4, warm_up_h=0.2, hours=0.2)
    first, again, other = (simulate(world, seed, names=["in_turn"]) for seed in (0, 0, 1))
    assert first == again
    assert first["policies"] != other["policies"]


def server(rate, count):
    return Newcomer("a", 0, 1, rate, count, is_pinned=False)


def test_the_optimum_is_total_rate_over_blocks_where_windows_and_shares_do_not_bind():
    assert optimum([server(30, 1)] * 8, 4) == pytest.approx(60)


def test_the_optimum_knows_that_windows_do_not_tile_the_model():
    assert optimum([server(20, 2)] * 6, 3) == pytest.approx(30)  # Each holds the first block or the last, not both.


def test_the_optimum_counts_no_more_of_a_server_than_its_blocks_can_use():
    assert optimum([server(1000, 1), server(10, 1)], 2) == pytest.approx(10, rel=1e-3)


def test_as_many_servers_come_as_go():
    drawn = newcomers(World(hours=50), 0)
    alive = [one for one in drawn if one.born_s <= 40 * 3600 < one.dies_s]
    assert 150 < len(alive) < 250
