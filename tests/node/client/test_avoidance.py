"""Who failed is left out: for a while if it refused, until it announces itself anew if it is gone."""

import pytest

from dht.errors import PeerUnreachable
from node.client.avoidance import AVOID_S, DISTRUST_S, MAX_AVOID_S, Avoidance
from node.errors import Refused, StageLost
from tests.node.client.announcements import server

DEAD = PeerUnreachable("peer a does not answer")


def out(avoidance, now_s, t=5):
    return set(avoidance.left_out([server("a", 0, 8, t=t)], now_s))


@pytest.mark.parametrize("reason", [DEAD, StageLost("gone")])
def test_a_dead_peer_stays_out_while_its_old_announcement_stands_however_long(reason):
    avoidance = Avoidance()
    avoidance.note("a", reason, 5, 100.0)
    for later_s in (0, AVOID_S + 1, 10 * AVOID_S):
        assert out(avoidance, 100.0 + later_s) == {"a"}


def test_a_peer_that_announces_itself_anew_is_back_when_its_time_is_over():
    avoidance = Avoidance()
    avoidance.note("a", DEAD, 5, 100.0)
    assert out(avoidance, 100.0 + AVOID_S / 2, t=6) == {"a"}
    assert out(avoidance, 100.0 + AVOID_S, t=6) == set()


def test_who_refuses_is_asked_again_when_it_says_but_not_later_than_others():
    for retry_after_s, out_s in ((5.0, 5.0), (1e6, AVOID_S), (0.0, AVOID_S)):
        avoidance = Avoidance()
        avoidance.note("a", Refused("full", "No room.", retry_after_s=retry_after_s), 5, 100.0)
        assert out(avoidance, 100.0 + out_s - 0.1) == {"a"}
        assert out(avoidance, 100.0 + out_s + 0.1) == set()


def test_each_further_failure_counts_for_longer_up_to_a_bound_and_old_ones_are_forgotten():
    avoidance, now_s = Avoidance(), 0.0
    lasted = []
    for t in range(8):
        avoidance.note("a", DEAD, t, now_s)
        began_s = now_s
        while out(avoidance, now_s, t=t + 1):
            now_s += 1.0
        lasted.append(now_s - began_s)
    assert lasted == [min(AVOID_S * 2**count, MAX_AVOID_S) for count in range(8)]
    assert out(avoidance, now_s + MAX_AVOID_S + 1) == set()
    avoidance.note("a", DEAD, 9, now_s + MAX_AVOID_S + 2)
    assert out(avoidance, now_s + MAX_AVOID_S + 2 + AVOID_S, t=10) == set()


def test_failures_within_the_time_count_once():
    avoidance = Avoidance()
    for _ in range(5):
        avoidance.note("a", DEAD, 5, 100.0)
    assert out(avoidance, 100.0 + AVOID_S, t=6) == set()


def test_the_reason_is_said_on_one_bounded_line():
    avoidance = Avoidance()
    avoidance.note("a", Refused("full", "x\n" * 1000), 5, 100.0)
    (reason,) = avoidance.left_out([], 103.0).values()
    assert reason.startswith("failed 3 s ago: x x")
    assert "\n" not in reason
    assert len(reason) < 200


def test_whom_an_audit_has_found_at_fault_is_not_used_for_a_day_whatever_else_is_forgotten():
    avoidance = Avoidance()
    avoidance.distrust("a", "opens other\nbytes", 100.0)
    avoidance.forget()
    assert avoidance.distrusted(105.0) == {"a": "failed an audit 5 s ago: opens other bytes"}
    assert avoidance.left_out([], 105.0) == {}, "of these, some may be used where there is no other"
    assert avoidance.distrusted(100.0 + DISTRUST_S) == {}


def test_who_did_not_sign_is_left_out_for_long_and_comes_last_where_there_is_no_other():
    avoidance = Avoidance()
    avoidance.shun("x", "it did not sign", 1000.0, 10.0)
    assert list(avoidance.left_out([], 1009.0)) == ["x"]
    assert avoidance.left_out([], 1011.0) == {}
    avoidance.shun("x", "it did not sign", 1000.0, 10.0)
    avoidance.forget()
    assert avoidance.left_out([], 11.0) == {}
