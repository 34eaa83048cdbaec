"""Who is drawn: by weight, alike for everybody, and not as an accuser likes it."""

import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.identity import peer_id_to_bytes
from dht.judgement.committee import committee, minus_log2, panel, rank_of, seed_of
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, ONE, PEERS, claim_of

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "committees.json").read_text())
EQUAL = dict.fromkeys(PEERS, ONE)
OTHERS = PEERS[2:]


@given(st.integers(1, 2**64))
def test_the_logarithm_is_that_of_floats_as_far_as_these_go(number):
    assert minus_log2(number) / 2**32 == pytest.approx(64 - math.log2(number), abs=1e-8)


def test_the_logarithm_never_rises_and_is_exact_at_powers_of_two():
    assert [minus_log2(2**power) for power in range(65)] == [(64 - power) << 32 for power in range(65)]
    numbers = sorted(int.from_bytes(sha256(bytes([each])).digest()[:8], "big") + 1 for each in range(256))
    logs = [minus_log2(number) for number in (1, *numbers, 2**64)]
    assert logs == sorted(logs, reverse=True)


def test_logarithms_ranks_and_committees_are_those_of_the_vectors():
    for number, log in VECTORS["minus_log2"]:
        assert minus_log2(int(number)) == int(log)
    for drawn in VECTORS["ranks"]:
        seed, peer = bytes.fromhex(drawn["seed"]), peer_id_to_bytes(drawn["peer"])
        assert rank_of(seed, peer, int(drawn["credibility"])) == int(drawn["rank"])


@given(st.permutations(OTHERS[:20]), st.integers(0, 20))
def test_the_order_in_which_candidates_are_listed_does_not_matter(candidates, size):
    claim = claim_of()
    drawn = committee(claim, 1, candidates, EQUAL, size)
    assert drawn == committee(claim, 1, OTHERS[:20], EQUAL, size)
    assert drawn == committee(claim, 1, [*candidates, *candidates, ACCUSED, ACCUSER], EQUAL, 20)[:size]
    assert len(drawn) == size


def test_neither_party_nor_who_has_no_credibility_judges():
    claim = claim_of()
    drawn = committee(claim, 1, PEERS, EQUAL | {PEERS[5]: 0}, len(PEERS))
    assert set(drawn) == set(PEERS) - {ACCUSED, ACCUSER, PEERS[5]}
    assert committee(claim, 1, PEERS, {}, 7) == ()
    assert panel(claim, [*ANCHORS, ACCUSED, ACCUSER]) == tuple(sorted(ANCHORS))


def test_who_leaves_makes_room_for_one_and_moves_nobody_else():
    claim = claim_of()
    drawn = committee(claim, 1, OTHERS, EQUAL, 7)
    without = committee(claim, 1, set(OTHERS) - {drawn[3]}, EQUAL, 7)
    assert without[:6] == tuple(each for each in drawn if each != drawn[3])


def test_an_accuser_gets_no_other_committee_by_other_words_and_levels_differ():
    claim = claim_of()
    drawn = committee(claim, 1, OTHERS, EQUAL, 7)
    for change in (
        {"t": claim.t + 1}, {"number": 2}, {"error_ppm": 1}, {"evidence": b"e" * 32}, {"evidence_bytes": 7},
        {"session": b"s" * 16}, {"segment": 1}, {"index": 5}, {"epoch": claim.epoch + 1},
    ):  # fmt: skip
        assert committee(replace(claim, **change), 1, OTHERS, EQUAL, 7) == drawn
    assert committee(claim, 2, OTHERS, EQUAL, 7) != drawn
    assert seed_of(claim, 1) != seed_of(claim_of(lane=8), 1)


def test_who_is_twice_as_credible_is_drawn_first_twice_as_often():
    num_draws = 600
    heavy = {peer: ONE * (2 if number % 2 else 1) for number, peer in enumerate(OTHERS[:12])}
    firsts = Counter(heavy[committee(claim_of(lane=lane), 1, heavy, heavy, 1)[0]] for lane in range(num_draws))
    share = firsts[2 * ONE] / num_draws
    assert share == pytest.approx(2 / 3, abs=3 * math.sqrt(2 / 9 / num_draws))


def captured(num_bad: int, num_all: int, size: int, needed: int) -> float:
    """The chance that a fair draw without replacement takes so many of the bad."""
    ways = sum(
        math.comb(num_bad, taken) * math.comb(num_all - num_bad, size - taken) for taken in range(needed, size + 1)
    )
    return float(Fraction(ways, math.comb(num_all, size)))


def test_committees_are_captured_as_often_as_a_fair_draw_is():
    num_draws = 250
    draws = [committee(claim_of(lane=lane), 1, OTHERS, EQUAL, 31) for lane in range(num_draws)]
    for percent, published in ((20, (0.005, 0.004, 0.0001)), (30, (0.029, 0.050, 0.010)), (40, (0.096, 0.21, 0.128))):
        num_bad = len(OTHERS) * percent // 100
        bad = set(OTHERS[:num_bad])
        for (size, needed), infinite in zip(((7, 5), (15, 8), (31, 16)), published, strict=True):
            expected = captured(num_bad, len(OTHERS), size, needed)
            assert expected == pytest.approx(infinite, abs=0.025)  # those are for a swarm without end
            found = sum(len(bad.intersection(draw[:size])) >= needed for draw in draws) / num_draws
            assert found == pytest.approx(expected, abs=3 * math.sqrt(max(expected, 0.005) / num_draws))


def test_the_poor_in_credibility_capture_less():
    num_draws = 100
    bad = OTHERS[: len(OTHERS) * 2 // 5]
    weights = EQUAL | dict.fromkeys(bad, ONE // 4)
    draws = [set(committee(claim_of(lane=lane), 1, OTHERS, weights, 7)) for lane in range(num_draws)]
    assert sum(len(draw.intersection(bad)) >= 5 for draw in draws) / num_draws < 0.02
