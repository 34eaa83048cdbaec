"""What nobody waits for any more ends at its next look, and what waits behind it never begins."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from node.check.patience import PatientThread, look, until_cancelled

LONG_S = 30.0


def looking(begun, ended):
    begun.set()
    end_s = time.monotonic() + LONG_S
    try:
        while time.monotonic() < end_s:
            look()
            time.sleep(0.01)
    finally:
        ended.set()


def test_what_nobody_waits_for_any_more_ends_and_what_is_behind_it_never_begins():
    thread, begun, ended, behind = PatientThread("patient"), threading.Event(), threading.Event(), []

    async def leave():
        calls = [
            asyncio.create_task(until_cancelled(thread.run, looking, begun, ended)),
            asyncio.create_task(until_cancelled(thread.run, behind.append, "begun")),
        ]
        await asyncio.to_thread(begun.wait, 5)
        for call in calls:
            call.cancel()
        assert [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2

    began_s = time.monotonic()
    asyncio.run(leave())  # Waits for its threads, as a process that ends does.
    assert time.monotonic() - began_s < 2.0
    assert ended.is_set()
    assert behind == []
    assert thread.run(lambda: "as before") == "as before"


async def test_what_is_waited_for_goes_on_and_what_it_comes_to_comes_back():
    thread = PatientThread("patient")

    def twice(number):
        look()
        return 2 * number

    assert await until_cancelled(thread.run, twice, 21) == 42
    with pytest.raises(ZeroDivisionError):
        await until_cancelled(thread.run, lambda: 1 // 0)


async def test_who_is_cancelled_ends_nobody_elses():
    begun, ended = threading.Event(), threading.Event()
    mine = asyncio.create_task(until_cancelled(looking, begun, ended))
    await asyncio.to_thread(begun.wait, 5)
    other = asyncio.create_task(until_cancelled(time.sleep, 0.0))
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert not await asyncio.to_thread(ended.wait, 0.1)
    mine.cancel()
    assert await asyncio.to_thread(ended.wait, 2)


def test_outside_of_a_wait_a_look_stops_nothing():
    look()
    assert issubclass(CancelledError, Exception), "the thread that computes takes the next one on"
