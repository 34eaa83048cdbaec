"""A stream on which we have spoken last waits for the peer to close, but not for long and not for much."""

import asyncio
import contextlib
import time

import pytest

from dht.membership.members import LAST_WORD_S, Stream


@pytest.fixture
async def pair():
    """Two ends of one connection."""
    accepted = asyncio.get_running_loop().create_future()
    listening = await asyncio.start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
    ours = Stream("peer", *await asyncio.open_connection(*listening.sockets[0].getsockname()))
    theirs = Stream("us", *await accepted)
    yield ours, theirs
    await ours.close()
    await theirs.close()
    listening.close()


async def finish_s(stream):
    began = time.monotonic()
    await stream.finish()
    return time.monotonic() - began


async def test_it_closes_when_the_peer_has_closed(pair):
    ours, theirs = pair
    ours.writer.write(b"last word")
    finishing = asyncio.create_task(finish_s(ours))
    assert await theirs.reader.readexactly(9) == b"last word"
    assert not finishing.done()
    await theirs.close()
    assert await finishing < LAST_WORD_S


async def test_it_closes_on_a_peer_that_does_not(pair):
    ours, theirs = pair
    assert LAST_WORD_S <= await finish_s(ours) < LAST_WORD_S + 2
    assert await theirs.reader.read() == b""


async def test_it_does_not_read_on_for_a_peer_that_goes_on_sending(pair):
    ours, theirs = pair

    async def flood():
        with contextlib.suppress(OSError):
            while True:
                theirs.writer.write(bytes(2**14))
                await theirs.writer.drain()

    flooding = asyncio.create_task(flood())
    assert await finish_s(ours) < LAST_WORD_S
    await flooding
