"""Evidence goes to members as it was claimed with, or not at all."""

import asyncio
import re
from dataclasses import replace

import pytest

from dht.errors import PeerUnreachable
from dht.membership.members import read_message
from dht.testnet import testnet
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
