"""Who does not answer is passed by, longer each time."""

from dht.hardening.shunned import FIRST_S, FORGOTTEN_S, LONGEST_S, MAX_SHUNNED, Shunned


def pauses(shunned: Shunned, num: int, now_s: float = 1000.0) -> list[float]:
    """How long a peer is passed by that fails whenever it is asked."""
    lengths = []
    for _ in range(num):
        shunned.failed("peer", now_s)
        ends_s = now_s
        while shunned.is_shunned("peer", ends_s):
            ends_s += 1.0
        lengths.append(ends_s - now_s)
        now_s = ends_s
    return lengths


def test_each_failure_makes_the_pause_twice_as_long_within_a_bound():
    assert pauses(Shunned(), 7) == [5, 10, 20, 40, 80, 80, 80]
    assert (FIRST_S, LONGEST_S) == (5, 80)


def test_failures_in_a_pause_count_once():
    shunned = Shunned()
    for _ in range(10):
        shunned.failed("peer", 1000.0)
    assert not shunned.is_shunned("peer", 1000.0 + FIRST_S)


def test_who_answers_and_who_failed_long_ago_begin_anew():
    shunned = Shunned()
    pauses(shunned, 5)
    shunned.answered("peer")
    assert not shunned.is_shunned("peer", 0.0)
    assert pauses(shunned, 3) == [5, 10, 20]
    assert pauses(shunned, 1, 1035.0 + FORGOTTEN_S) == [5]


def test_no_more_are_remembered_than_may_be():
    shunned = Shunned()
    for number in range(MAX_SHUNNED + 1):
        shunned.failed(number, 1000.0)
    assert not shunned.is_shunned(0, 1001.0)
    assert shunned.is_shunned(1, 1001.0)
    assert shunned.is_shunned(MAX_SHUNNED, 1001.0)
