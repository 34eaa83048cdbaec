from hypothesis import given
from hypothesis import strategies as st

from dht.hardening.shares import Shares

HOLDERS = [b"a", b"b", b"c"]

STEPS = st.tuples(
    st.sampled_from(HOLDERS),
    st.integers(0, 5),  # place
    st.integers(1, 3),  # weight
    st.integers(0, 2),  # rank
    st.booleans(),  # take
)


@given(st.lists(STEPS, max_size=200))
def test_whatever_is_added_and_taken_shares_say_what_a_plain_count_says(steps):
    shares: Shares[int] = Shares()
    plain: dict[tuple[bytes, int], tuple[tuple[int, float], int]] = {}
    for holder, place, weight, low, takes in steps:
        rank, before = plain.get((holder, place), ((low, 0.0), 0))
        if not takes:
            shares.add(holder, place, weight, (low, 0.0))
            plain[holder, place] = max(rank, (low, 0.0)), before + weight
        elif before:
            shares.take(holder, place, min(weight, before))
            plain[holder, place] = rank, before - min(weight, before)
            if before <= weight:
                del plain[holder, place]
        weights = {each: sum(held for (who, _), (_, held) in plain.items() if who == each) for each in HOLDERS}
        assert shares.weights() == {each: held for each, held in weights.items() if held}
        heaviest = shares.heaviest()
        assert weights[heaviest or b"a"] == max(weights.values())
        assert all(shares.gap(each) == max(weights.values()) - weights[each] for each in HOLDERS)
        for each in shares.weights():
            order = sorted((rank, where) for (who, where), (rank, _) in plain.items() if who == each)
            assert shares.first(each) == order[0][1]
            assert all(shares.rank_at(each, where) == rank for rank, where in order)
            assert all(shares.weight_at(each, where) == plain[each, where][1] for _, where in order)


def test_who_has_nothing_weighs_nothing():
    shares: Shares[int] = Shares()
    assert shares.heaviest() is None
    assert shares.gap(b"a") == shares.weight(b"a") == shares.weight_at(b"a", 1) == 0


def test_adding_and_taking_again_and_again_grows_nothing():
    shares: Shares[int] = Shares()
    shares.add(b"b", 1, 5, (0, 0.0))
    for number in range(5000):
        shares.add(b"a", number % 7, 1, (number % 3, 0.0))
        shares.take(b"a", number % 7, 1)
        shares.add(b"b", 1, 1, (number, 0.0))
        shares.take(b"b", 1, 1)
    assert len(shares._heaviest) < 50
    assert len(shares._shares[b"b"].order) < 50
    assert shares.weights() == {b"b": 5}
