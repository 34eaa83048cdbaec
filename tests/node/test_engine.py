"""Work runs in one thread: calls in order, jobs together; too much is refused, and what fails is a value."""

import asyncio
import logging
import threading
import time

import pytest

import node.batching
from node.batching import Limits
from node.engine import Engine
from node.errors import ComputeFailed, Refused, SessionError


class Gate:
    """Work that holds the engine until it is opened."""

    def __init__(self):
        self.began, self.opened = threading.Event(), threading.Event()

    def work(self):
        self.began.set()
        assert self.opened.wait(10)
        return "opened"

    async def hold(self, engine):
        held = asyncio.create_task(engine.submit(self.work))
        await asyncio.to_thread(self.began.wait, 10)
        return held


class FakeGroup:
    """Counts positions instead of computing, and remembers every forward as ``{name: positions}``."""

    def __init__(self, seconds=0.0):
        self.forwards = []
        self.threads = set()
        self.seconds = seconds

    def run(self, shares):
        time.sleep(self.seconds)
        self.threads.add(threading.get_ident())
        self.forwards.append({job.name: positions for job, positions in shares})
        return [job.advance(positions) for job, positions in shares]


class FakeJob:
    """A step of so many positions that returns its name; ``error`` is what its forward comes to."""

    priority = 0

    def __init__(self, group, name, positions=1, *, client=None, rows=1, error=None, known=0):
        self.group, self.name, self.client, self.rows = group, name, client or name, rows
        self.session, self.positions_left = name.encode(), positions
        self.num_results = self.num_prepared = 0
        self._error, self._known = error, known

    def prepare(self):
        self.num_prepared += 1
        self.positions_left -= self._known
        self._known = 0

    def advance(self, positions):
        self.positions_left -= positions
        return self._error

    def result(self):
        self.num_results += 1
        return self.name


async def start(*coroutines):
    """Start tasks and let each reach its first await."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


async def test_work_returns_its_value_from_a_thread_that_is_not_the_loops():
    async with Engine() as engine:
        threads = {await engine.submit(threading.get_ident) for _ in range(5)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_work_runs_in_the_order_of_its_submission():
    done = []
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        tasks = await start(*(engine.submit(lambda number=number: done.append(number)) for number in range(20)))
        gate.opened.set()
        await asyncio.gather(held, *tasks)
    assert done == list(range(20))


async def test_the_loop_goes_on_while_work_runs():
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not held.done()
        gate.opened.set()
        assert await held == "opened"


async def test_a_full_queue_refuses_and_takes_work_again_later():
    async with Engine(max_waiting=3) as engine:
        held = await (gate := Gate()).hold(engine)
        waiting = await start(engine.submit(lambda: 1), engine.submit(lambda: 2))
        assert engine.num_waiting == 3
        with pytest.raises(Refused) as refusal:
            await engine.submit(lambda: 3)
        assert refusal.value.code == "busy"
        assert refusal.value.retryable
        assert refusal.value.retry_after_s > 0
        gate.opened.set()
        assert await asyncio.gather(held, *waiting) == ["opened", 1, 2]
        assert await engine.submit(lambda: 4) == 4


async def test_an_error_of_ours_crosses_as_itself():
    error = SessionError("not here")

    def fail():
        raise error

    async with Engine() as engine:
        with pytest.raises(SessionError) as caught:
            await engine.submit(fail)
    assert caught.value is error


async def test_an_unexpected_error_crosses_without_its_text_which_goes_to_the_log(caplog):
    def fail():
        raise RuntimeError("/home/somebody/secret")

    async with Engine() as engine:
        with caplog.at_level(logging.ERROR), pytest.raises(ComputeFailed) as caught:
            await engine.submit(fail)
        assert "secret" not in str(caught.value)
        assert "RuntimeError" in str(caught.value)
        assert "secret" in caplog.text
        assert await engine.submit(lambda: "still here") == "still here"


async def test_work_cancelled_while_it_waits_never_runs():
    ran = []
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        cancelled, kept = await start(
            engine.submit(lambda: ran.append("cancelled")), engine.submit(lambda: ran.append("kept"))
        )
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        gate.opened.set()
        await asyncio.gather(held, kept)
    assert ran == ["kept"]


async def test_work_cancelled_while_it_runs_ends_unheard_and_the_engine_goes_on():
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        gate.opened.set()
        assert await engine.submit(lambda: "next") == "next"


async def test_leaving_waits_for_work_that_was_submitted_and_ends_the_thread():
    done = []
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        (task,) = await start(engine.submit(lambda: done.append("last")))
        gate.opened.set()
    assert done == ["last"]
    await asyncio.gather(held, task)
    assert "engine" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.timeout(20)
async def test_leaving_with_a_full_queue_does_not_hang():
    async with Engine(max_waiting=2) as engine:
        held = await (gate := Gate()).hold(engine)
        (task,) = await start(engine.submit(lambda: "waiting"))
        gate.opened.set()
    assert await asyncio.gather(held, task) == ["opened", "waiting"]


@pytest.mark.timeout(20)
async def test_work_that_comes_while_the_engine_is_left_is_refused_and_does_not_hang():
    refusals = []

    async def come_late(engine, gate):
        await asyncio.sleep(0.01)
        try:
            await engine.submit(lambda: None)
        except Refused as refusal:
            refusals.append(refusal.code)
        gate.opened.set()

    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        (late,) = await start(come_late(engine, gate))
    await asyncio.gather(held, late)
    assert refusals == ["draining"]
    with pytest.raises(Refused):
        await engine.submit(lambda: None)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("positions", [1, 500])
async def test_leaving_ends_every_job_that_was_submitted(positions):
    group = FakeGroup()
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        tasks = await start(*(engine.run(FakeJob(group, name, positions)) for name in "abc"))
        gate.opened.set()
    assert await asyncio.gather(held, *tasks) == ["opened", "a", "b", "c"]
    assert "engine" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.timeout(20)
async def test_leaving_with_nothing_but_cancelled_jobs_does_not_hang():
    group = FakeGroup()
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        (task,) = await start(engine.run(FakeJob(group, "a")))
        task.cancel()
        gate.opened.set()
        await held
    assert group.forwards == []
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_jobs_that_came_while_the_thread_was_busy_share_a_forward():
    group, reports = FakeGroup(), []
    async with Engine(observe=reports.append) as engine:
        held = await (gate := Gate()).hold(engine)
        jobs = [FakeJob(group, name, rows=rows) for name, rows in (("a", 1), ("b", 2), ("c", 3))]
        tasks = await start(*(engine.run(job) for job in jobs))
        gate.opened.set()
        assert await asyncio.gather(held, *tasks) == ["opened", "a", "b", "c"]
    assert group.forwards == [{"a": 1, "b": 1, "c": 1}]
    assert group.threads != {threading.get_ident()}
    assert [(report.num_jobs, report.num_tokens, len(report.waits_s)) for report in reports] == [(3, 6, 3)]
    assert [(job.num_prepared, job.num_results) for job in jobs] == [(1, 1)] * 3


async def test_jobs_of_different_groups_do_not_share_a_forward():
    one, other = FakeGroup(), FakeGroup()
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        tasks = await start(*(engine.run(FakeJob(group, name)) for name, group in (("a", one), ("b", other))))
        gate.opened.set()
        await asyncio.gather(held, *tasks)
    assert (one.forwards, other.forwards) == ([{"a": 1}], [{"b": 1}])


async def test_a_job_that_fails_does_not_fail_those_that_share_its_forward(caplog):
    group, ours = FakeGroup(), SessionError("not here")
    jobs = [
        FakeJob(group, "good"),
        FakeJob(group, "ours", error=ours),
        FakeJob(group, "unforeseen", error=RuntimeError("secret")),
    ]
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        tasks = await start(*(engine.run(job) for job in jobs))
        gate.opened.set()
        _, good, refused, failed = await asyncio.gather(held, *tasks, return_exceptions=True)
    assert len(group.forwards) == 1
    assert good == "good"
    assert refused is ours
    assert isinstance(failed, ComputeFailed)
    assert "secret" not in str(failed)
    assert "secret" in caplog.text
    assert [job.num_results for job in jobs] == [1, 0, 0]


async def test_a_group_that_raises_fails_its_jobs_and_the_engine_goes_on():
    class Broken(FakeGroup):
        def run(self, shares):
            raise RuntimeError("no memory")

    async with Engine() as engine:
        with pytest.raises(ComputeFailed):
            await engine.run(FakeJob(Broken(), "a"))
        assert await engine.run(FakeJob(FakeGroup(), "b")) == "b"
        assert engine.num_waiting == 0


@pytest.mark.parametrize("method", ["prepare", "result"])
async def test_a_job_that_fails_outside_its_forward_fails_alone(method, monkeypatch):
    group, error = FakeGroup(), SessionError("no")

    def fail():
        raise error

    broken, good = FakeJob(group, "broken"), FakeJob(group, "good")
    monkeypatch.setattr(broken, method, fail)
    async with Engine() as engine:
        outcomes = await asyncio.gather(engine.run(broken), engine.run(good), return_exceptions=True)
    assert outcomes == [error, "good"]


async def test_cancelled_jobs_never_run():
    group = FakeGroup()
    async with Engine() as engine:
        held = await (gate := Gate()).hold(engine)
        cancelled, kept = await start(engine.run(FakeJob(group, "a")), engine.run(FakeJob(group, "b")))
        cancelled.cancel()
        gate.opened.set()
        await asyncio.gather(held, kept)
    assert group.forwards == [{"b": 1}]


async def test_a_long_job_that_is_cancelled_between_its_chunks_runs_no_further():
    class Waiter(FakeGroup):
        """Stops behind its first forward until it may go on."""

        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def run(self, shares):
            errors = super().run(shares)
            self.gate.work()
            return errors

    group = Waiter()
    async with Engine(limits=Limits(full_chunk_tokens=16)) as engine:
        (task,) = await start(engine.run(FakeJob(group, "long", 100)))
        await asyncio.to_thread(group.gate.began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        group.gate.opened.set()
        assert await engine.run(FakeJob(FakeGroup(), "next")) == "next"
    assert group.forwards == [{"long": 16}]


async def test_a_full_queue_refuses_jobs_too():
    group = FakeGroup()
    async with Engine(max_waiting=2) as engine:
        held = await (gate := Gate()).hold(engine)
        (waiting,) = await start(engine.run(FakeJob(group, "a")))
        with pytest.raises(Refused) as refusal:
            await engine.run(FakeJob(group, "b"))
        assert (refusal.value.code, refusal.value.retryable) == ("busy", True)
        gate.opened.set()
        await asyncio.gather(held, waiting)
        assert await engine.run(FakeJob(group, "c")) == "c"


async def test_a_long_job_is_cut_and_short_ones_ride_along(monkeypatch):
    monkeypatch.setattr(node.batching, "_PAUSE_S", 60.0)  # longer than any machine stalls
    group = FakeGroup()
    async with Engine(limits=Limits(chunk_tokens=64)) as engine:
        held = await (gate := Gate()).hold(engine)
        jobs = [FakeJob(group, "long", 150, rows=2), FakeJob(group, "a"), FakeJob(group, "b", 3)]
        tasks = await start(*(engine.run(job) for job in jobs))
        gate.opened.set()
        assert await asyncio.gather(held, *tasks) == ["opened", "long", "a", "b"]
    # Two rows: half a chunk's positions. After the short steps others are expected, so chunks stay short.
    assert group.forwards[0] == {"a": 1, "b": 3, "long": 32}
    assert group.forwards[1:] == [{"long": 32}, {"long": 32}, {"long": 32}, {"long": 22}]


async def test_a_long_job_alone_is_cut_into_long_chunks():
    group = FakeGroup()
    async with Engine(limits=Limits(full_chunk_tokens=512)) as engine:
        await engine.run(FakeJob(group, "long", 1100))
    assert group.forwards == [{"long": 512}, {"long": 512}, {"long": 76}]


async def test_what_a_job_knows_already_is_not_run():
    group = FakeGroup()
    async with Engine() as engine:
        assert await engine.run(FakeJob(group, "all", 100, known=100)) == "all"
        assert await engine.run(FakeJob(group, "most", 100, known=96)) == "most"
    assert group.forwards == [{"most": 4}]


async def test_the_sessions_of_a_greedy_client_do_not_keep_another_waiting():
    """One client keeps eight steps waiting, another has one at a time; two fit into a forward."""
    num_greedy, num_modest = 8, 10

    class Patient(FakeGroup):
        """Lets a forward last until those whom the one before has answered have sent their next steps."""

        num_sent, is_over = 0, False

        def run(self, shares):
            num_answered = sum(len(forward) for forward in self.forwards)
            deadline_s = time.monotonic() + 10
            while self.num_sent < num_greedy + 1 + num_answered and not self.is_over:
                assert time.monotonic() < deadline_s
                time.sleep(1e-4)
            return super().run(shares)

    group = Patient()

    async def repeat(name, client, times):
        for _ in range(times):
            group.num_sent += 1
            await engine.run(FakeJob(group, name, client=client))

    async with Engine(limits=Limits(max_rows=2)) as engine:
        held = await (gate := Gate()).hold(engine)
        greedy = await start(*(repeat(f"greedy{number}", "greedy", 1000) for number in range(num_greedy)))
        modest = asyncio.create_task(repeat("modest", "modest", num_modest))
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(held, modest)
        group.is_over, num_forwards = True, len(group.forwards)
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
    # A step that comes while a forward runs rides in the next one.
    assert num_forwards <= 2 * num_modest + 2


async def test_sessions_that_have_paused_are_forgotten_also_where_the_engine_is_always_busy(monkeypatch):
    monkeypatch.setattr(node.batching, "_PAUSE_S", 0.0)
    group = FakeGroup()
    async with Engine() as engine:
        for first in range(0, 150, 50):
            held = await (gate := Gate()).hold(engine)
            tasks = await start(*(engine.run(FakeJob(group, f"{first + number}")) for number in range(50)))
            await asyncio.sleep(2 * Limits().max_linger_s)  # they have waited: nobody lingers for others
            gate.opened.set()
            await asyncio.gather(held, *tasks)
        assert len(engine._rhythms) <= 50


async def test_sessions_that_step_at_about_the_same_pace_share_their_forwards():
    """Two sessions pause 2 ms between steps and begin 3 ms apart; a forward takes 5 ms."""
    group = FakeGroup(seconds=0.005)
    async with Engine() as engine:

        async def repeat(name, delay_s):
            await asyncio.sleep(delay_s)
            for _ in range(40):
                await engine.run(FakeJob(group, name))
                await asyncio.sleep(0.002)

        await asyncio.gather(repeat("a", 0.0), repeat("b", 0.003))
    shared = [run for run in group.forwards if len(run) == 2]
    assert len(shared) > 25, "without waiting they would take turns"
