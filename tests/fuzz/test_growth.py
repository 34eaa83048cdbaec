"""No input makes a node hang or grow: time and memory are bounded by the input, tables by their bounds."""

import contextlib
import gc
import time
import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dht.validation
from dht.codec import decode
from dht.errors import BadRecord, ProtocolViolation
from dht.hardening.dictionary import unpack_dictionary
from dht.records import MAX_ENVELOPE_BYTES, seal
from node.agreement.offers import MAX_LANES
from node.errors import FrameError
from node.wire import MAX_HEADER_BYTES
from node.wire import decode as decode_frame
from tests.dht.samples import announcement
from tests.dht.test_validation import as_stored
from tests.fuzz.answers import Node, answered, asked
from tests.fuzz.draw import Draw
from tests.fuzz.peers import MAX_STREAMS, Peers
from tests.fuzz.records import ALICE, NOW, RecordValidator, envelopes
from tests.fuzz.serving import Serving

NESTED = {
    "arrays that claim what they have not": b"\xdc\x01\x00",
    "arrays of arrays": b"\x91",
    "long arrays of arrays": b"\xdc\x04\x00",
    "lying arrays": b"\xdd\xff\xff\xff\xff",
    "maps": b"\x81\xa1a",
    "empty arrays": b"\x90",
    "numbers": b"\x00",
}


def cost_of(read, data, refusals):
    """Bytes and processor seconds that reading takes at most."""
    tracemalloc.start()
    try:
        with contextlib.suppress(refusals):
            read(data)
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    seconds = []
    for _ in range(3):
        began = time.process_time()
        with contextlib.suppress(refusals):
            read(data)
        seconds.append(time.process_time() - began)
    return peak_bytes, min(seconds)


@pytest.mark.parametrize("piece", NESTED.values(), ids=NESTED)
def test_records_dictionaries_and_frames_cost_no_more_than_their_bytes_are_worth(piece):
    record = (piece * MAX_ENVELOPE_BYTES)[:MAX_ENVELOPE_BYTES]
    peak_bytes, seconds = cost_of(lambda data: decode(data, MAX_ENVELOPE_BYTES), record, BadRecord)
    assert peak_bytes < 4 * 2**20
    assert seconds < 0.05
    header = (b"\x81\xa1a" + piece * MAX_HEADER_BYTES)[:MAX_HEADER_BYTES]
    peak_bytes, seconds = cost_of(decode_frame, header, FrameError)
    assert peak_bytes < 16 * 2**20
    assert seconds < 0.2
    answer = (piece * 2**18)[: 2**18]
    peak_bytes, seconds = cost_of(lambda data: unpack_dictionary(data, wrapped=True), answer, ProtocolViolation)
    assert peak_bytes < 64 * 2**20
    assert seconds < 1.0


@settings(max_examples=50, database=None)
@given(st.binary(max_size=4096))
def test_what_is_decoded_takes_memory_by_the_size_of_the_input(data):
    peak_bytes, seconds = cost_of(lambda it: decode(it, 4096), data, BadRecord)
    assert peak_bytes < 4 * 2**20
    assert seconds < 0.05


def test_a_validator_remembers_so_many_signatures_and_names_few_reasons(monkeypatch):
    monkeypatch.setattr(dht.validation, "REMEMBERED", 50)
    validator = RecordValidator(clock=lambda: NOW)
    for shard in range(200):
        assert validator.validate(as_stored(seal(announcement(ALICE, t=int(NOW) - shard // 4, end=1 + shard), ALICE)))
    assert len(validator._verified) == 50
    chance = Random(2)
    for _ in range(500):
        validator.validate(as_stored_by(chance))
        envelopes(chance.randbytes(60))
    assert len(validator.refusals) < 20


def as_stored_by(chance):
    record = as_stored(seal(announcement(ALICE, t=int(NOW)), ALICE))
    value = bytearray(record.value)
    value[chance.randrange(len(value))] = chance.randrange(256)
    return type(record)(record.key, record.subkey, bytes(value), record.expiration_time)


def grown_bytes(work, warm_up):
    """Bytes that are held after ``work`` and were not before, once ``warm_up`` has filled what is kept by design.

    Whatever leaks does so each time, so the least of three is told: other threads of this process allocate, too.
    """
    warm_up()
    held = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        try:
            work()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    print(f"held after three times: {held}")
    return min(held)


def test_a_node_of_the_dht_does_not_grow_by_calls_and_answers():
    node = Node()
    chance = Random(3)

    def meet(num_calls):
        for _ in range(num_calls):
            (asked if chance.random() < 0.5 else answered)(node, chance.randbytes(160))

    try:
        assert grown_bytes(lambda: meet(800), lambda: meet(400)) < 300_000
        assert len(node.protocol.storage) <= 3
        assert not node.protocol._tasks
        assert not node.complaints
    finally:
        node.close()


def test_a_server_does_not_grow_by_what_peers_did():
    serving = Serving()
    chance = Random(4)
    opened = 0

    def visit(num_visits):
        nonlocal opened
        for _ in range(num_visits):
            peers = Peers(Draw(chance.randbytes(300)), serving)
            while not peers.draw.is_used_up:
                peers.act()
            opened += peers.accepted
            for stream in (*serving.streams, *serving.dialled):
                stream.writer.transport.is_stuck = False
                stream.ends()
            serving.engine.takes_s = serving.dial_takes_s = 0.0
            serving.handler.open_doors()
            serving.turn(1300.0)
            assert serving.handler.num_sessions == serving.handler.num_streams == 0
            assert len(serving.streams) <= MAX_STREAMS
            serving.streams.clear()
            serving.ledger.last.clear()

    try:
        assert grown_bytes(lambda: visit(25), lambda: visit(10)) < 500_000
        assert opened > 10
        assert len(serving.contracts._lanes) <= MAX_LANES
        assert serving.contracts._open == {}
        assert len(serving.handler._runner._groups) <= 10
        serving.end()
    finally:
        serving.abandon()
