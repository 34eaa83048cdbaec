"""The connection to p2pd, without p2pd."""

import asyncio

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
