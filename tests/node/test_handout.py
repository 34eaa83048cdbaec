"""Bytes go out by their hash, within bounds of size and time, whatever either side does."""

import asyncio
import time
from hashlib import sha256

import pytest

from dht.codec import encode
from dht.errors import PeerUnreachable
from dht.membership.members import read_message, write_message
from dht.testnet import testnet
from node import handout as handout_module
from node.errors import FalseBytes
from node.handout import Handout, fetch_bytes

PROTOCOL = "/efedllm/test/1"
BLOB = bytes(range(256)) * 1024
NAME = sha256(BLOB).digest()


@pytest.fixture
async def nodes():
    async with testnet(2) as nodes:
        yield nodes


async def test_a_member_has_it_by_its_hash(nodes):
    holder, reader = nodes
    await Handout(PROTOCOL, {NAME: BLOB}.get).start(holder)
    assert await fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB)) == BLOB
    with pytest.raises(PeerUnreachable):
        await fetch_bytes(reader, holder.peer_id, PROTOCOL, bytes(32), len(BLOB))


@pytest.mark.parametrize("size", [1, len(BLOB) - 1, len(BLOB) + 1, 2**32 - 1])
async def test_nothing_is_read_of_what_has_another_size(nodes, size):
    holder, reader = nodes
    read = []

    async def offer(stream):
        await read_message(stream.reader, 64)
        await write_message(stream.writer, encode([0, size]))
        read.append(await stream.reader.read(1))
        await stream.finish()

    await holder.serve(PROTOCOL, offer)
    with pytest.raises(FalseBytes, match="size"):
        await fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB))


async def test_who_hands_out_drop_by_drop_is_left_in_time(nodes):
    holder, reader = nodes

    async def drip(stream):
        await read_message(stream.reader, 64)
        await write_message(stream.writer, encode([0, len(BLOB)]))
        for byte in BLOB:
            stream.writer.write(bytes([byte]))
            await stream.writer.drain()
            await asyncio.sleep(0.05)

    await holder.serve(PROTOCOL, drip)
    began_s = time.monotonic()
    with pytest.raises(PeerUnreachable):
        await fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB), stream_s=0.5)
    assert time.monotonic() - began_s < 5


async def test_who_says_nothing_is_left_in_time(nodes, monkeypatch):
    holder, reader = nodes
    monkeypatch.setattr(handout_module, "ANSWER_S", 0.3)

    async def sit(stream):
        await stream.reader.read()

    await holder.serve(PROTOCOL, sit)
    with pytest.raises(PeerUnreachable):
        await fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB))


async def test_so_many_are_answered_at_once_and_no_more(nodes, monkeypatch):
    holder, reader = nodes
    monkeypatch.setattr(handout_module, "MAX_READERS", 1)
    monkeypatch.setattr(handout_module, "MAX_READERS_OF_PEER", 2)
    may_go, loop = asyncio.Event(), asyncio.get_running_loop()

    def find(_):
        asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(10)
        return BLOB

    handout = Handout(PROTOCOL, find)
    await handout.start(holder)
    first = asyncio.create_task(fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB)))
    while not handout.num_readers:
        await asyncio.sleep(0.01)
    with pytest.raises(PeerUnreachable, match="now"):
        await fetch_bytes(reader, holder.peer_id, PROTOCOL, NAME, len(BLOB))
    may_go.set()
    assert await first == BLOB
    assert not handout.num_readers
