"""How large a swarm is taken to be, and what members that crowd around a key can and cannot change."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.hardening.density import (
    ID_SPACE,
    MAX_REGION_NODES,
    NUM_SAMPLES,
    REGION_NODES,
    SAMPLE_LIFE_S,
    Density,
    choose,
    estimate_size,
    is_crowded,
    is_narrow,
    radius_of,
    sampled_ids,
    spread,
)

BEAM = 20


def ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(ID_SPACE) for _ in range(count)]


def nearest(key: int, members: list[int], count: int = BEAM) -> list[int]:
    return sorted(key ^ member for member in members)[:count]


def surveyed(rng: random.Random, members: list[int]) -> Density:
    density = Density()
    for target in sampled_ids(rng.randrange(ID_SPACE), NUM_SAMPLES):
        density.note(0.0, nearest(target, members), BEAM)
    return density


def mined(rng: random.Random, key: int, tried: int, run: int) -> list[int]:
    """The ids nearest to a key among those of ``tried`` ground keys: their distances are a Poisson process."""
    distances = itertools.accumulate(rng.expovariate(tried / ID_SPACE) for _ in range(run))
    return [key ^ min(ID_SPACE - 1, int(distance)) for distance in distances]


@pytest.mark.parametrize("num_members", [60, 300, 3000])
def test_the_size_is_found_within_a_factor_of_two(num_members):
    rng = random.Random(num_members)
    members = ids(rng, num_members)
    sizes = [surveyed(rng, members).size(0.0) for _ in range(20)]
    assert all(num_members / 2 < size < num_members * 2 for size in sizes)
    assert num_members * 0.85 < sum(sizes) / len(sizes) < num_members * 1.25


@given(st.integers(0, BEAM - 1))
def test_members_that_one_look_up_finds_all_of_are_counted(num_members):
    assert estimate_size(nearest(5, ids(random.Random(1), num_members)), BEAM) == num_members


@given(st.lists(st.integers(0, ID_SPACE - 1), max_size=80), st.integers(0, ID_SPACE - 1))
def test_no_distances_break_the_estimate_the_choice_or_the_alarm(distances, radius):
    distances = sorted(distances)
    size = estimate_size(distances, BEAM)
    assert size >= 0
    is_crowded(distances, max(1.0, size))
    chosen = choose(distances, radius)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= MAX_REGION_NODES
    assert len(chosen) >= min(len(distances), REGION_NODES)
    assert set(range(min(len(distances), REGION_NODES))) <= set(chosen)


def test_a_size_is_unknown_until_enough_look_ups_are_fresh():
    density = Density()
    assert density.num_missing(0.0) == NUM_SAMPLES
    assert density.size(0.0) == 1.0
    for _ in range(NUM_SAMPLES):
        density.note(0.0, [1, 2, 3], BEAM)
    assert density.num_missing(SAMPLE_LIFE_S) == 0
    assert density.size(0.0) == 3.0
    assert density.num_missing(SAMPLE_LIFE_S + 1) == NUM_SAMPLES


@pytest.mark.parametrize("run", [20, 64, 150])
@pytest.mark.parametrize("num_members", [60, 300, 3000])
def test_a_crowd_of_mined_ids_neither_hides_nor_keeps_honest_members_out_of_the_region(num_members, run):
    for seed in range(5):
        rng = random.Random(seed)
        key, honest = ids(rng, 1)[0], ids(rng, num_members)
        crowd = mined(rng, key, 100 * max(num_members, 1000), run)
        everyone = sorted([*honest, *crowd], key=lambda each: each ^ key)
        density = surveyed(rng, everyone)
        size = density.size(0.0)
        assert size < 2.5 * num_members, "the crowd does not make the swarm look much larger"
        distances = [key ^ each for each in everyone]
        assert is_narrow(distances, radius_of(size))
        assert is_crowded(distances[:BEAM], size)
        chosen = [everyone[index] for index in choose(distances, radius_of(size))]
        assert len(set(chosen) & set(honest)) >= 5


def test_among_honest_members_hardly_any_key_is_called_narrow_or_crowded():
    rng = random.Random(7)
    num_narrow = num_crowded = 0
    for num_members in (25, 60, 300):
        members = ids(rng, num_members)
        for _ in range(40):
            distances, size = nearest(rng.randrange(ID_SPACE), members), surveyed(rng, members).size(0.0)
            num_narrow += is_narrow(distances, radius_of(size))
            num_crowded += is_crowded(distances, size)
    assert num_crowded == 0
    assert num_narrow <= 3


def test_a_small_swarm_is_one_region():
    assert radius_of(1) == radius_of(REGION_NODES) == ID_SPACE - 1
    assert radius_of(2 * REGION_NODES) == ID_SPACE // 2


@given(st.integers(0, ID_SPACE - 1), st.integers(1, ID_SPACE - 1), st.integers(1, 40))
def test_spread_ids_lie_within_the_radius_and_rise(centre, radius, count):
    distances = [centre ^ each for each in spread(centre, radius, count)]
    assert distances == sorted(distances)
    assert all(0 <= distance <= radius for distance in distances)


def test_a_crowd_that_is_most_of_a_small_swarm_is_not_taken_for_its_density():
    for seed in range(300):
        rng = random.Random(seed)
        key, honest = ids(rng, 1)[0], [(2 * step + 1) * ID_SPACE // 16 for step in range(8)]
        everyone = [*honest, *mined(rng, key, 1000, 22)]
        assert 12 <= surveyed(rng, everyone).size(0.0) <= 1.5 * len(everyone)


def test_ids_to_look_up_are_spread_evenly_from_any_first_one():
    for first in (0, 7, ID_SPACE - 1):
        targets = sampled_ids(first, NUM_SAMPLES)
        assert targets[0] == first
        steps = {(later - earlier) % ID_SPACE for earlier, later in itertools.pairwise([*targets, first])}
        assert max(steps) - min(steps) <= 1
    assert sampled_ids(5, 0) == []
