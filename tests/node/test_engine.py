"""Work runs in order in one thread, is refused when there is too much of it, and fails as a value."""

import asyncio
import logging
import threading

import pytest

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
