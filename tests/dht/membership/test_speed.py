"""Bytes that are sent to be thrown away tell how fast the way to a member is."""

import asyncio
import contextlib
import time

import pytest

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.members import Stream
from dht.membership.speed import MAX_BYTES, SPEED_PROTOCOL, Speed
from dht.parameters import JoinCode
from dht.swarm import Swarm

PEER = "the other"


class Streams:
    """Stands for the membership: what one end dials, the handler of the other end serves, over a TCP connection."""

    def __init__(self) -> None:
        self.handler = None
        self.dialled = 0

    async def serve(self, protocol, handler):
        assert protocol == SPEED_PROTOCOL
        self.handler = handler

    async def dial(self, peer_id, protocol):
        assert (peer_id, protocol) == (PEER, SPEED_PROTOCOL)
        self.dialled += 1
        accepted = asyncio.get_running_loop().create_future()
        listening = await asyncio.start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
        ours = Stream(PEER, *await asyncio.open_connection(*listening.sockets[0].getsockname()))
        listening.close()
        theirs = Stream("us", *await accepted)
        self.serving = asyncio.create_task(self._serve(theirs))
        return ours

    async def _serve(self, stream):
        try:
            await self.handler(stream)
        finally:
            await stream.close()


@pytest.fixture
async def streams():
    made = Streams()
    await Speed(made).start()
    return made


def paced(rate):
    """Return a handler that takes and gives ``rate`` bytes/s."""

    async def handle(stream):
        num_bytes = int.from_bytes(await stream.reader.readexactly(4), "big")
        for answer in (b"", b"\x01"):
            stream.writer.write(answer)
            for _ in range(num_bytes // 1024):
                began = time.perf_counter()
                if answer:
                    stream.writer.write(bytes(1024))
                    await stream.writer.drain()
                else:
                    await stream.reader.readexactly(1024)
                await asyncio.sleep(max(0.0, 1024 / rate - (time.perf_counter() - began)))

    return handle


async def test_a_slow_way_is_measured_with_few_bytes(streams):
    streams.handler = paced(100_000)
    began = time.monotonic()
    assert 50_000 < await Speed(streams).measure(PEER) < 150_000
    assert time.monotonic() - began < 5
    assert streams.dialled == 3  # The round trip, 16 KiB, 64 KiB.


async def test_a_quick_way_is_measured_with_no_more_than_the_bound(streams):
    assert await Speed(streams).measure(PEER) > 1e6
    assert streams.dialled <= 5


async def test_more_than_the_bound_is_not_answered(streams):
    stream = await streams.dial(PEER, SPEED_PROTOCOL)
    stream.writer.write((MAX_BYTES + 1).to_bytes(4, "big") + bytes(100))
    with contextlib.suppress(ConnectionError):
        assert await stream.reader.read() == b""
    await stream.close()


async def test_a_second_asker_is_told_to_come_back_and_the_first_one_that_leaves_frees_the_place(streams):
    first = await streams.dial(PEER, SPEED_PROTOCOL)
    serving = streams.serving
    first.writer.write((1000).to_bytes(4, "big"))
    await asyncio.sleep(0.05)
    with pytest.raises(PeerUnreachable, match="somebody else"):
        await Speed(streams).measure(PEER)
    await first.close()
    await serving
    assert await Speed(streams).measure(PEER) > 0


async def test_a_member_that_ends_early_is_an_error_that_is_named(streams):
    async def handle(stream):
        await stream.reader.readexactly(4)

    streams.handler = handle
    with pytest.raises(PeerUnreachable, match="does not take part"):
        await Speed(streams).measure(PEER)


async def test_two_nodes_measure_each_other():
    async with (
        Swarm(Identity.ephemeral(), name="lab") as first,
        Swarm(Identity.ephemeral(), join=JoinCode(tuple(first.addresses), "lab", b"", None)) as second,
    ):
        assert await second.measure_speed(first.peer_id) > 1e5
        assert await first.measure_speed(second.peer_id) > 1e5
