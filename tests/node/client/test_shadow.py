"""Whom duplicates go to, when, how many, and that they are in nobody's way; the route and the network are played."""

import asyncio
import contextlib
import random
import time
from dataclasses import replace

import pytest

from dht.errors import PeerUnreachable
from node.client import shadow
from node.client.audit_book import AuditBook, Outcome
from node.client.outlook import Wanted
from node.client.route import Route, Stage
from node.client.shadow import MAX_TRACES, MIN_POSITIONS, ShadowParts, ShadowTraffic
from node.client.shadow_budget import ShadowBudget
from node.client.stage_link import StageFailed
from node.client.thin_terms import ThinTerms
from node.errors import StageLost
from node.wire import Result
from tests.node.client.announcements import NUM_BLOCKS, server
from tests.node.client.test_shadow_trace import SESSION, result, shape, step


class Played:
    """A swarm of one established server and some newcomers; what they give is what they are sent."""

    def __init__(self, *newcomers):
        self.newcomers = list(newcomers)
        self.has_probation = True
        self.opened, self.told, self.sent, self.closed = [], [], [], 0
        self.is_busy = False
        self.fails = None
        self.lies = False
        self.never_answers = False

    def on_probation(self):
        return self.newcomers

    async def plan(self, wanted: Wanted):
        assert self.newcomers[0].owner in wanted.without
        if wanted.start == wanted.end:
            return Route(())
        assert "old" not in wanted.without or wanted.start > 0
        name = "older" if "old" in wanted.without else "old"
        return Route((Stage(name, wanted.start, wanted.end, ()),))

    async def open(self, route, asked, auditor):
        self.opened.append((route, asked, auditor))
        if self.fails is not None:
            raise self.fails
        return self

    session = bytes(range(16))

    async def run(self, steps):
        if self.never_answers:
            await asyncio.Event().wait()
        self.sent += steps
        return [self.answer(each) for each in steps]

    def answer(self, each):
        given = result(each)
        return (
            Result(SESSION, given.position, given.shape, given.codec, bytes(len(given.payload))) if self.lies else given
        )

    async def close(self):
        self.closed += 1


async def never_dialled(*_, **__):
    raise PeerUnreachable("nobody is dialled here")


@contextlib.asynccontextmanager
async def traffic(played, per_mille=50):
    parts = ShadowParts(
        outlook=played, open=played.open, dial=never_dialled, judge=None, book=AuditBook(),
        is_busy=lambda: played.is_busy, audited=lambda result: None, tell=played.told.append,
    )  # fmt: skip
    made = ShadowTraffic(parts, ShadowBudget(per_mille), NUM_BLOCKS, random.Random(0))
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(shadow, "_LOOK_S", 0.001)
    monkeypatch.setattr(shadow, "_GLANCE_S", 0.001)


def session_of(made, positions, **changes):
    """Let the client have a session of some positions; return what was told of it."""
    trace = made.opened(replace(shape(), **changes))
    if trace is not None:
        for position in range(positions):
            each = step(position, 1)
            trace.answered(each, result(each))
        trace.end()
    return trace


async def until(is_so, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.002)


async def test_a_newcomer_stands_between_servers_and_is_sent_the_real_beginning():
    played = Played(server("new", 2, 6))
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.told)
    route, asked, auditor = played.opened[0]
    assert [(stage.peer_id, stage.start, stage.end) for stage in route.stages] == [
        ("old", 0, 2), ("new", 2, 6), ("older", 6, 8)
    ]  # fmt: skip
    (told,) = played.told
    assert told.outcome is Outcome.PASS
    assert told.num_positions >= MIN_POSITIONS
    assert [each.position for each in played.sent] == list(range(told.num_positions))
    assert {each.session for each in played.sent} == {played.session}, "under an id of its own"
    assert asked.max_length == told.num_positions + 1
    assert (auditor.wholly, auditor.per_mille) == ({"new"}, 0)
    assert played.closed == 1


@pytest.mark.parametrize("positions", [40, 319, 400, 3000])
async def test_of_what_was_consumed_a_twentieth_is_duplicated_at_most(positions):
    played = Played(*(server(f"new{number}", 0, 8) for number in range(50)))
    played.plan = no_gaps
    async with traffic(played) as made:
        for _ in range(3):
            session_of(made, positions)
        await asyncio.sleep(0.3)
    assert made.budget.consumed == 3 * positions * NUM_BLOCKS
    assert made.budget.duplicated == sum(told.num_positions for told in played.told) * NUM_BLOCKS
    assert 20 * made.budget.duplicated <= made.budget.consumed
    assert bool(played.told) == (3 * positions >= 20 * MIN_POSITIONS)


async def no_gaps(wanted):
    assert wanted.start == wanted.end
    return Route(())


async def test_nobody_is_given_the_same_text_twice():
    played = Played(*(server(f"new{number}", 0, 8) for number in range(3)))
    played.plan = no_gaps
    async with traffic(played) as made:
        session_of(made, 10_000)
        await until(lambda: len(played.told) == 3)
        await asyncio.sleep(0.05)
    assert sorted(told.peer_id for told in played.told) == ["new0", "new1", "new2"]


async def test_what_comes_out_differently_is_told_and_the_newcomer_left_alone_for_a_while():
    played = Played(server("new", 0, 8))
    played.plan, played.lies = no_gaps, True
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.told)
        session_of(made, 2000)
        await asyncio.sleep(0.05)
    (told,) = played.told
    assert told.outcome is Outcome.INCONCLUSIVE
    assert "by whose doing is not known" in told.why


async def test_what_was_not_sent_is_not_spent_and_what_was_is():
    played = Played(server("new", 0, 8))
    played.plan = no_gaps
    played.fails = StageFailed(Stage("new", 0, 8, ()), PeerUnreachable("gone"))
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.told)
    assert made.budget.duplicated == 0
    assert played.told[0].outcome is Outcome.INCONCLUSIVE

    async def breaks(_):
        raise StageLost("It is gone.")

    played = Played(server("new", 0, 8))
    played.plan, played.run = no_gaps, breaks
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.told)
    assert made.budget.duplicated > 0
    assert (played.closed, played.told[0].why) == (1, "it came to nothing: It is gone.")


async def test_steps_that_somebody_waits_for_go_first_for_a_while():
    played = Played(server("new", 0, 8))
    played.plan, played.is_busy = no_gaps, True
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.opened)
        began_s = time.monotonic()
        await until(lambda: played.sent)
        assert time.monotonic() - began_s > 20 * shadow._GLANCE_S
        await until(lambda: played.told)


async def test_a_client_that_leaves_does_not_wait_for_a_duplicate():
    played = Played(server("new", 0, 8))
    played.plan, played.never_answers = no_gaps, True
    async with traffic(played) as made:
        session_of(made, 2000)
        await until(lambda: played.opened)
        began_s = time.monotonic()
        await made.close()
        assert time.monotonic() - began_s < 0.5
        assert played.closed == 1, "it has said goodbye"
        assert session_of(made, 2000) is None


async def test_where_there_is_no_use_for_it_nothing_is_kept():
    played = Played()
    async with traffic(played, per_mille=0) as made:
        assert session_of(made, 10) is None
    async with traffic(played) as made:
        assert session_of(made, 10, thin=ThinTerms(top=4)) is None
        played.has_probation = False
        assert session_of(made, 10) is None


async def test_only_so_many_sessions_are_kept_and_all_are_counted():
    played = Played()
    async with traffic(played) as made:
        traces = [made.opened(shape()) for _ in range(MAX_TRACES + 3)]
        assert sum(not trace.is_complete for trace in traces) == MAX_TRACES
        for trace in traces:
            trace.answered(step(0, 20), result(step(0, 20)))
        assert made.budget.consumed == len(traces) * 20 * NUM_BLOCKS
        assert made.opened(replace(shape(2), left_padding=(0, 3))).is_complete, "padded rows"
        traces[0].end()
        assert not made.opened(shape()).is_complete, "in its place"
