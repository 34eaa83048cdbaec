"""What a node does in the background goes on, whatever happens to it."""

import asyncio

import pytest

from dht.errors import DaemonDied
from node.run.duties import in_background, keep_up


async def test_a_duty_that_an_unforeseen_error_ends_is_told_and_begins_again(caplog: pytest.LogCaptureFixture):
    attempts = 0

    async def duty() -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ZeroDivisionError

    async with asyncio.timeout(5):
        await keep_up("counting", duty, pause_s=0.01)
    assert attempts == 3
    assert caplog.text.count("counting: this is a bug") == 2
    assert "ZeroDivisionError" in caplog.text


async def test_a_duty_ends_with_p2pd():
    async def duty() -> None:
        raise DaemonDied("gone")

    async with asyncio.timeout(5):
        await keep_up("counting", duty)


async def test_duties_end_with_their_context():
    began, ended = asyncio.Event(), asyncio.Event()

    async def duty() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with in_background({"waiting": duty}), asyncio.timeout(5):
        await began.wait()
    assert ended.is_set()
