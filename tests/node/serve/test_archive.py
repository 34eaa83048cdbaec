"""Logs of ended sessions: for their clients alone, for a while, and never in the way of sessions that run for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import Refused
from node.serve.archive import Archive, Archived, Ration
from node.step_log import StepLog
from node.wire import LOG_HELD_S, LOG_KEPT_S, MAX_REVEALED_SHARE, MAX_REVEALS

MINE, OTHER = "mine", "other"


def archived(num_bytes=100, ended_s=0.0, client=MINE):
    return Archived(client, StepLog(bytes(16), "float32", 4, 1, 64), num_bytes, ended_s)


def test_a_log_is_for_its_client_alone_and_for_two_minutes():
    archive, kept = Archive(), archived()
    archive.put(b"session", kept)
    assert archive.find(b"session", MINE, LOG_KEPT_S) is kept
    assert archive.find(b"session", OTHER, 0.0) is None
    assert archive.find(b"another", MINE, 0.0) is None
    assert archive.find(b"session", MINE, LOG_KEPT_S + 0.1) is None


def test_the_log_that_was_kept_longest_makes_room_first_and_a_new_one_does_not():
    archive = Archive()
    for number in range(4):
        archive.put(bytes([number]), archived(100, float(number)))
    assert archive.make_room(150, LOG_HELD_S + 2.0) == 200
    assert archive.find(b"\x01", MINE, LOG_HELD_S) is None
    assert archive.find(b"\x02", MINE, LOG_HELD_S) is not None
    assert archive.make_room(1000, LOG_HELD_S + 2.0) == 100, "the last one has ended less than ten seconds ago"
    assert archive.num_bytes == 100
    assert archive.held_s(LOG_HELD_S + 2.0) == 1.0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 500), st.floats(0, 60), st.sampled_from(["put", "room", "old"])),
        max_size=30,
    )
)
def test_every_byte_that_was_put_in_is_held_or_was_let_go_of(changes):
    archive, now_s, taken = Archive(), 0.0, 0
    for number, num_bytes, after_s, what in changes:
        now_s += after_s
        if what == "put":
            taken += num_bytes - archive.put(bytes([number]), archived(num_bytes, now_s))
        elif what == "room":
            taken -= archive.make_room(num_bytes, now_s)
        else:
            taken -= archive.expire(now_s)
            assert all(now_s - each.ended_s < LOG_KEPT_S for each in archive._logs.values())
        assert archive.num_bytes == taken
    assert archive.expire(now_s + LOG_KEPT_S + 1.0) == taken


def test_a_session_is_opened_so_often_and_so_many_times_over_and_then_no_more():
    ration = Ration()
    for _ in range(MAX_REVEALED_SHARE):
        ration.take(1000, 1000)
    with pytest.raises(Refused, match="Enough of this session has been opened"):
        ration.take(1, 1000)
    ration.take(1000, 2000)  # It has gone on meanwhile.
    ration = Ration()
    for _ in range(MAX_REVEALS):
        ration.take(1, 1000)
    with pytest.raises(Refused, match="Enough of this session has been opened"):
        ration.take(1, 1000)
