"""Evidence goes to members as it was claimed with, or not at all."""

import asyncio
import contextlib
import re
from dataclasses import replace

import pytest

from dht.codec import decode, encode
from dht.errors import PeerUnreachable
from dht.membership.members import Stream, read_message, write_message
from dht.testnet import testnet
from node import handout
from node.claims.stream import EVIDENCE_PROTOCOL, fetch_evidence
from node.errors import FalseEvidence
from node.handout import Handout
from tests.node.check.session import held

BLOB, CLAIM = held().claim()


@pytest.fixture
async def nodes():
    async with testnet(2) as nodes:
        yield nodes


def claim_by(swarm, **changes):
    return replace(CLAIM, accuser=swarm.peer_id, **changes)


async def test_a_member_has_evidence_by_its_hash_and_what_is_not_there_it_has_not(nodes):
    accuser, reader = nodes
    await Handout(EVIDENCE_PROTOCOL, {CLAIM.evidence: BLOB}.get).start(accuser)
    assert await fetch_evidence(reader, claim_by(accuser)) == BLOB
    with pytest.raises(PeerUnreachable):
        await fetch_evidence(reader, claim_by(accuser, evidence=bytes(32)))


async def test_false_evidence_is_refused_by_whoever_reads_it(nodes):
    accuser, reader = nodes
    false = [BLOB[:-1] + bytes([BLOB[-1] ^ 1]), BLOB + b"!", BLOB[:-1], b""]
    await Handout(EVIDENCE_PROTOCOL, lambda _: false[-1]).start(accuser)
    while false:
        with pytest.raises(FalseEvidence, match=re.compile("names|size")):
            await fetch_evidence(reader, claim_by(accuser))
        false.pop()


async def test_an_accuser_that_answers_with_something_else_is_not_waited_for(nodes):
    accuser, reader = nodes

    async def mumble(stream):
        await read_message(stream.reader, 64)
        stream.writer.write(b"\x00\x02\x91\xc0")
        await stream.writer.drain()
        await stream.finish()

    await accuser.serve(EVIDENCE_PROTOCOL, mumble)
    with pytest.raises(FalseEvidence, match="something else"):
        await fetch_evidence(reader, claim_by(accuser))


async def test_a_greedy_reader_has_one_stream_at_a_time(nodes):
    accuser, reader = nodes
    may_go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def find(_):
        asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(10)
        return BLOB

    server = Handout(EVIDENCE_PROTOCOL, find)
    await server.start(accuser)
    first = asyncio.create_task(fetch_evidence(reader, claim_by(accuser)))
    while not server.num_readers:
        await asyncio.sleep(0.01)
    with pytest.raises(PeerUnreachable, match="now"):
        await fetch_evidence(reader, claim_by(accuser))
    may_go.set()
    assert await first == BLOB
    assert await fetch_evidence(reader, claim_by(accuser)) == BLOB


class Reader:
    """The other end of a stream: it asks for the evidence, and takes a piece each ``pause_s``."""

    def __init__(self, pause_s):
        self.pause_s, self.taken, self._unread = pause_s, bytearray(), 0

    def write(self, data):
        self.taken += data
        self._unread += len(data)

    async def drain(self):
        if self._unread >= 2**16:
            self._unread = 0
            await asyncio.sleep(self.pause_s)

    def is_closing(self):
        return False

    def close(self):
        pass

    async def wait_closed(self):
        pass

    async def read(self, server, peer="reader"):
        """Say how much of the evidence has come before the stream ended, and its state."""
        asks = asyncio.StreamReader()
        question = encode([CLAIM.evidence])
        asks.feed_data(len(question).to_bytes(2, "big") + question)
        asks.feed_eof()
        with contextlib.suppress(TimeoutError):
            await server.handle(Stream(peer, asks, self))
        end = 2 + int.from_bytes(self.taken[:2], "big")
        return len(self.taken) - end, decode(bytes(self.taken[2:end]), 64)[0]


LARGE = bytes(2**22)


async def test_a_slow_reader_holds_no_place(monkeypatch):
    """It takes a piece often enough to be waited for, but so little that its place would be held for minutes."""
    monkeypatch.setattr(handout, "ANSWER_S", 0.4)
    server = Handout(EVIDENCE_PROTOCOL, lambda _: LARGE)
    num_bytes, _ = await Reader(0.15).read(server)
    assert 0 < num_bytes < 2**19
    assert await Reader(0.0).read(server) == (len(LARGE), 0)


async def test_an_accuser_that_hands_out_slowly_is_not_waited_for(nodes, monkeypatch):
    accuser, reader = nodes
    monkeypatch.setattr(handout, "ANSWER_S", 0.5)

    async def trickle(served):
        await read_message(served.reader, 64)
        await write_message(served.writer, encode([0, 2**16]))
        for _ in range(30):
            served.writer.write(bytes(1024))
            await served.writer.drain()
            await asyncio.sleep(0.1)

    monkeypatch.setattr(handout, "_PIECE_BYTES", 1024)
    await accuser.serve(EVIDENCE_PROTOCOL, trickle)
    async with asyncio.timeout(1.5):
        with pytest.raises(PeerUnreachable):
            await fetch_evidence(reader, claim_by(accuser, evidence_bytes=2**16))


async def test_strangers_who_hold_all_places_keep_nobody_from_it_who_has_to_judge():
    server = Handout(EVIDENCE_PROTOCOL, lambda _: LARGE, first=lambda name: {"juror"} if name == CLAIM.evidence else ())
    sybils = [asyncio.create_task(Reader(0.02).read(server, f"sybil {number}")) for number in range(5)]
    await asyncio.sleep(0.2)
    assert await Reader(0.0).read(server, "stranger") == (0, 2)
    assert await Reader(0.0).read(server, "juror") == (len(LARGE), 0)
    assert sorted(await asyncio.gather(*sybils)) == [(0, 2), *[(len(LARGE), 0)] * 4]
