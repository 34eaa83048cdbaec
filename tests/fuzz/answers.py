"""Fuzz the DHT's calls: what members ask of a node, and what they answer to it."""

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import msgpack
from google.protobuf.message import DecodeError
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2

from dht.errors import NotAdmitted, PeerUnreachable, ProtocolViolation
from dht.hardening.admitted_stub import AdmittedStub
from dht.hardening.dictionary import unpack_dictionary
from dht.hardening.findings import Findings
from dht.hardening.protocol import BUCKET_SIZE, AdmittedProtocol, dht_id_of
from dht.hardening.storage import DIGEST_BYTES, MAX_SUBKEYS
from dht.identity import Identity
from dht.records import dht_id, seal
from dht.rules import Rules
from dht.validation import RecordValidator
from tests.dht.samples import announcement, receipt
from tests.fuzz.draw import Draw, draw_value, mutated
from tests.fuzz.records import ALICE, BOB, NOW, drawn_envelope

OWN, MEMBER, STRANGER = (PeerID(Identity.from_seed(bytes([50 + n]) * 32).peer_id_bytes) for n in range(3))
LONG = Rules(epoch_s=2**24, window_epochs=2**16)
"""Records of ``NOW`` outlive these tests, whose storage has the clock of the machine."""
STANDING = [
    seal(replace(announcement(ALICE, t=int(time.time())), life_s=3600), ALICE),
    seal(receipt(ALICE, BOB, epoch=106, t_first=106 * 2**24 + 60, t_last=106 * 2**24 + 62), ALICE, BOB, rules=LONG),
]
KEYS = [DHTID.from_bytes(dht_id(signed.key)) for signed in STANDING] + [DHTID(5)]


class Daemon:
    """p2pd, as far as the protocol touches it: nothing is sent anywhere."""

    peer_id = OWN

    async def add_protobuf_handler(self, *_: object, **__: object) -> None:
        return None


class Peer:
    """Answers every call with what was drawn."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def _reply(self, _: object, timeout: float) -> object:
        del timeout
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    rpc_ping = rpc_store = rpc_find = rpc_held = _reply


async def _ensure(_: str) -> None:
    """Everybody is a member."""


class Node:
    """A protocol with a few records, on a loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, object]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.validator = RecordValidator(rules=LONG)
        self.protocol = self.loop.run_until_complete(self._launch())
        self.answer: object = None
        self.protocol.get_stub = lambda peer: AdmittedStub(Peer(self.answer), _ensure, lambda _: None, peer)
        for signed in STANDING:
            assert self.protocol.storage.store_subkey(
                DHTID.from_bytes(dht_id(signed.key)), signed.subkey, signed.envelope, signed.expires_s
            )

    async def _launch(self) -> AdmittedProtocol:
        return await AdmittedProtocol.launch(
            Daemon(),
            validator=self.validator,
            is_admitted=lambda peer: peer != STRANGER.to_base58(),
            ensure=_ensure,
            forget=lambda _: None,
            named=lambda _, __: None,
            client_mode=False,
        )

    def run(self, work):
        """Run to the end, with everything that it has begun."""

        async def whole():
            try:
                return await work
            finally:
                while len(tasks := asyncio.all_tasks()) > 1:
                    for outcome in await asyncio.gather(*(tasks - {asyncio.current_task()}), return_exceptions=True):
                        if isinstance(outcome, BaseException):
                            raise outcome

        return self.loop.run_until_complete(whole())

    def close(self) -> None:
        self.loop.close()


def drawn_dictionary(draw: Draw) -> bytes:
    """A dictionary of records as it travels, whole or not."""
    records: list[list[object]] = []
    for _ in range(draw.number(3)):
        signed = draw.one_of(STANDING)
        envelope = signed.envelope if draw.flag() else drawn_envelope(draw)[0]
        records.append([signed.subkey, envelope, signed.expires_s])
    fields = [math.inf, 1e18, records]
    if draw.flag():
        fields = mutated(draw, fields)
    packed = msgpack.packb(msgpack.ExtType(0x50 if not draw.rarely() else draw.number(127), msgpack.packb(fields)))
    if draw.rarely():
        at = draw.number(len(packed) - 1)
        packed = packed[:at] + draw.some_bytes(6) + packed[at + draw.number(6) :]
    return packed if not draw.rarely() else draw.some_bytes(200)


def dictionaries(data: bytes) -> None:
    """A dictionary is read, or refused."""
    draw = Draw(data)
    for packed, wrapped in ((data, True), (data, False), (drawn_dictionary(draw), True)):
        try:
            records = unpack_dictionary(packed, wrapped=wrapped)
        except ProtocolViolation:
            continue
        assert len(records) <= MAX_SUBKEYS
        for subkey, value, expires_s in records:
            assert (type(subkey), type(value), type(expires_s)) == (bytes, bytes, float)


def _node_info(draw: Draw) -> dht_pb2.NodeInfo:
    ids = (
        b"",
        dht_id_of(MEMBER).to_bytes(),
        dht_id_of(OWN).to_bytes(),
        draw.blob(20),
        draw.some_bytes(25),
        b"\xff" * 21,
    )
    return dht_pb2.NodeInfo(node_id=draw.one_of(ids))


def _key(draw: Draw) -> bytes:
    return draw.some_bytes(22) if draw.rarely() else draw.one_of(KEYS).to_bytes()


def _expiry(draw: Draw) -> float:
    return draw.one_of((STANDING[0].expires_s, STANDING[1].expires_s, NOW, math.nan, math.inf, -math.inf, 0.0, 1e300))


def _store_request(draw: Draw) -> dht_pb2.StoreRequest:
    request = dht_pb2.StoreRequest(peer=_node_info(draw))
    for _ in range(draw.number(3)):
        signed = draw.one_of(STANDING)
        request.keys.append(_key(draw))
        tags = (msgpack.packb(signed.subkey), b"\x01", b"", msgpack.packb(None), msgpack.packb(draw_value(draw)))
        request.subkeys.append(draw.one_of((*tags, AdmittedProtocol.IS_DICTIONARY)))
        envelope = signed.envelope if draw.flag() else drawn_envelope(draw)[0]
        request.values.append(drawn_dictionary(draw) if draw.flag() else envelope)
        request.expiration_time.append(_expiry(draw))
        request.in_cache.append(draw.flag())
    if draw.rarely():
        request.values.append(b"more")
    return request


def _find_result(draw: Draw) -> dht_pb2.FindResult:
    result = dht_pb2.FindResult(type=draw.number(3), value=drawn_dictionary(draw), expiration_time=_expiry(draw))
    for _ in range(draw.number(3)):
        peer = draw.one_of((OWN.to_bytes(), MEMBER.to_bytes(), STRANGER.to_bytes(), draw.some_bytes(40)))
        with contextlib.suppress(ValueError):
            result.nearest_node_ids.append(
                dht_id_of(PeerID(peer)).to_bytes() if not draw.rarely() else draw.some_bytes(22)
            )
        result.nearest_peer_ids.append(peer)
    return result


def _raw(draw: Draw, kind: type) -> object:
    """What protobuf makes of any bytes."""
    message = kind()
    with contextlib.suppress(DecodeError):
        message.ParseFromString(draw.rest())
    return message


def asked(node: Node, data: bytes) -> None:
    """A member's call is answered or refused, whatever is in it."""
    draw = Draw(data)
    context = SimpleNamespace(remote_id=draw.one_of((MEMBER, MEMBER, STRANGER)))
    what, is_raw, protocol = draw.number(3), draw.rarely(), node.protocol
    if what == 0:
        request = _raw(draw, dht_pb2.StoreRequest) if is_raw else _store_request(draw)
        call = protocol.rpc_store(request, context)
    elif what == 1:
        node.answer = dht_pb2.PingResponse(peer=_node_info(draw))
        call = protocol.rpc_ping(dht_pb2.PingRequest(peer=_node_info(draw), validate=draw.flag()), context)
    else:
        request = dht_pb2.FindRequest(peer=_node_info(draw), keys=[_key(draw) for _ in range(draw.number(70))])
        request = _raw(draw, dht_pb2.FindRequest) if is_raw else request
        call = (protocol.rpc_find if what == 2 else protocol.rpc_held)(request, context)
    try:
        response = node.run(call)
    except (NotAdmitted, ProtocolViolation):
        return
    assert response.ByteSize() < 2**22
    assert context.remote_id == MEMBER


def answered(node: Node, data: bytes) -> None:
    """Whatever a member answers, what is believed of it is valid, and nothing else comes of it."""
    draw = Draw(data)
    keys, protocol = KEYS[: 1 + draw.number(2)], node.protocol
    what, is_raw = draw.number(3), draw.rarely()
    if what <= 1:
        response = dht_pb2.FindResponse(
            peer=_node_info(draw), results=[_find_result(draw) for _ in range(draw.number(3))]
        )
        node.answer = _raw(draw, dht_pb2.FindResponse) if is_raw else response
        if draw.rarely():
            node.answer = draw.one_of((PeerUnreachable("gone"), NotAdmitted("no"), TimeoutError(), OSError()))
        if what == 0:
            _check_found(node, keys)
            return
        found = node.run(protocol.call_held(MEMBER, keys))
        assert found is None or all(len(digest) <= DIGEST_BYTES for digest, _ in found.values())
    elif what == 2:
        node.answer = dht_pb2.StoreResponse(
            peer=_node_info(draw), store_ok=[draw.flag() for _ in range(draw.number(4))]
        )
        node.answer = _raw(draw, dht_pb2.StoreResponse) if is_raw else node.answer
        told = node.run(protocol.call_store(MEMBER, keys, [b"value"] * len(keys), 2e9, [b"subkey"] * len(keys)))
        assert told is None or len(told) <= 256
    else:
        node.answer = dht_pb2.PingResponse(peer=_node_info(draw), available=draw.flag(), dht_time=_expiry(draw))
        node.answer = _raw(draw, dht_pb2.PingResponse) if is_raw else node.answer
        node.run(protocol.call_ping(MEMBER))


def _check_found(node: Node, keys: list[DHTID]) -> None:
    heard: list[tuple[bytes, bytes]] = []
    findings = {keys[0]: Findings(lambda one, other: heard.append((one, other)), 2)}
    found = node.run(node.protocol.call_find(MEMBER, keys, findings))
    if found is None:
        return
    assert set(found) == set(keys)
    for key, (records, neighbours) in found.items():
        assert len(neighbours) <= BUCKET_SIZE
        assert all(node_id == dht_id_of(peer) != dht_id_of(OWN) for node_id, peer in neighbours.items())
        for record in records:
            assert node.protocol.is_valid(key.to_bytes(), *record)
    assert len(findings[keys[0]].records()) <= 2


def calls(data: bytes) -> None:
    """Some calls one after the other at one node, from both sides; it grows by nothing but valid records."""
    node = Node()
    try:
        for part in range(0, max(1, len(data)), 160):
            (asked if part // 160 % 2 else answered)(node, data[part : part + 160])
            asked(node, data[part : part + 160])
        assert not node.complaints, node.complaints
        assert len(node.protocol.storage) <= len(KEYS)
        assert not node.protocol._tasks
        assert len(node.protocol.routing_table.uid_to_peer_id) <= 1
    finally:
        node.close()
