"""The connection to p2pd, without p2pd."""

import asyncio
import gc
import socket
import warnings

from dht.hardening.control import Control


async def test_a_stream_that_comes_in_the_moment_of_closing_is_closed(tmp_path):
    control, path = Control(tmp_path / "p2pd.sock", tmp_path / "own.sock"), tmp_path / "here.sock"
    closing = []

    def come(reader, writer):
        closing.append(asyncio.create_task(control.close()))
        control._on_connection(reader, writer)  # Its task is cancelled before it has begun.

    async with await asyncio.start_unix_server(come, path=str(path)):
        reader, writer = await asyncio.open_unix_connection(str(path))
        async with asyncio.timeout(5.0):
            assert await reader.read() == b""
        await asyncio.gather(*closing)
        writer.close()
        await writer.wait_closed()


def test_a_stream_that_is_being_accepted_when_the_node_closes_is_not_left_open(tmp_path):
    async def close_in_the_moment_of_accepting() -> None:
        control = Control(tmp_path / "p2pd.sock", tmp_path / "own.sock")
        await control.listen()
        caller.connect(str(tmp_path / "own.sock"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # Accepted, and not yet a stream: its task is to begin.
        await control.close()

    with warnings.catch_warnings(record=True) as left, socket.socket(socket.AF_UNIX) as caller:
        warnings.simplefilter("always")
        asyncio.run(close_in_the_moment_of_accepting())
        gc.collect()
        assert [str(warning.message) for warning in left] == []
        caller.settimeout(5.0)
        assert caller.recv(1) == b""
