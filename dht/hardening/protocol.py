"""Answer and ask the DHT's calls (ping, store, find, and our own: held) among admitted peers only.

A subclass of ``DHTProtocol``, whose stock behaviour this mends:
- anyone who can connect may call: here every call, both ways, needs an admitted peer;
- F: a node chooses its DHT id freely: here it is the SHA-1 of its peer id, and what claims otherwise is dropped;
- anyone may store what anyone has signed: here a server's announcement comes from that server alone;
- one bad record in an answer or a store discards the whole: here each record stands for itself;
- values are unpacked with extension types before they are checked, and a mixed dictionary raises inside the storing
  node: here a dictionary is read field by field, with byte subkeys, and the validator sees each record first;
- peers may push values into our cache: here there is no cache;
- a node that meets another walks all that it stores and sends it some unasked: here nothing is sent (``keeper`` asks);
- a peer that failed once is asked again by every search that is told of it: here it is passed by for a while, until it
  calls us;
- a call with many records may be longer than p2pd carries: here it is split;
- members beyond a full bucket are kept in reserve without bound: here as many as a bucket holds;
- a key that does not fit into an answer cannot be read: here the answer holds as much of it as fits, drawn by chance;
- whether a peer holds a record can be found only by reading all under its key: here a peer is asked for a digest.

This file does not know how admission is won, nor what records mean. It runs on the event loop.
"""

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgpack
from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import P2PContext
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2

from dht.errors import BadRecord, DhtError, NotAdmitted, ProtocolViolation
from dht.hardening.admitted_stub import AdmittedStub
from dht.hardening.control import MAX_MESSAGE_BYTES, Control
from dht.hardening.dictionary import unpack_dictionary
from dht.hardening.findings import Contradicted, Findings, StoredRecord
from dht.hardening.shunned import Shunned
from dht.hardening.storage import DIGEST_BYTES, MAX_SUBKEYS, RecordStorage, some_that_fit
from dht.hardening.tenants import Worth
from dht.identity import PEER_ID_BYTES, peer_id_to_str
from dht.records import MODELS_KEY, Envelope, Kind, dht_id, key_bytes

logger = logging.getLogger(__name__)

BUCKET_SIZE = 20
NUM_REPLICAS = 5
DEPTH_MODULO = 5

CALL_S = 3.0
"""Seconds that a peer may take to answer a DHT call, admission included."""

MAX_KEYS_PER_CALL = 64
"""Most keys of one call."""

MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES - 2**18
"""Bytes of values in one answer; p2pd carries 4 MiB."""

MAX_RECORDS_PER_STORE = 2 * MAX_SUBKEYS
"""Most records of one store call."""

MAX_MODELS_OF_ONE = 4
"""Most models that one author may list: an identity runs in one process, which serves one model, and lists it for a
minute; with four it may have been started anew with others three times in that minute."""

SHARES = MappingProxyType({DHTID.from_bytes(dht_id(key_bytes(Kind.MANIFEST, MODELS_KEY))): MAX_MODELS_OF_ONE})
"""Keys that many authors share and whose subkeys they choose; most records of one author there."""

OWN_KINDS = frozenset({Kind.ANNOUNCE, Kind.MANIFEST})
"""Kinds that only their author may store; their subkeys begin with the author's 38 bytes. Nobody stores them again for
others, and a key pair costs nothing: else one member could fill a key in the names of thousands that are none."""

RECORDS_PER_CALL = 256
"""Most records that we send in one call: on a busy machine a thousand new ones take seconds to check."""

CHECKS_AT_ONCE = 32
"""Records that are checked before the event loop gets its turn."""

_REMEMBERED_PEERS = 2**14


@functools.lru_cache(_REMEMBERED_PEERS)
def dht_id_of(peer: PeerID) -> DHTID:
    """Give the one DHT id that a peer may have."""
    return DHTID.generate(source=peer.to_bytes())


@functools.lru_cache(_REMEMBERED_PEERS)
def _read_peer(peer_bytes: bytes) -> tuple[PeerID, DHTID, str] | None:
    """Read a peer's id: as hivemind has it, its DHT id, and as text; None where it is none."""
    try:
        text = peer_id_to_str(peer_bytes)
    except ValueError:
        return None
    peer = PeerID(peer_bytes)
    return peer, dht_id_of(peer), text


def _contradicted_unheard(_: bytes, __: bytes) -> None:
    """Do nothing with a contradiction."""


class AdmittedProtocol(DHTProtocol):
    """The DHT's calls between members of one swarm; made by ``launch``."""

    # ServicerBase caches these per class and would otherwise take the stock ones.
    _rpc_handlers = None
    _stub_type = None

    _tasks: set[asyncio.Task[object]]
    _num_checked = 0
    contradicted: Contradicted
    shunned: Shunned

    @classmethod
    async def launch(
        cls,
        control: Control,
        *,
        validator: RecordValidatorBase,
        is_admitted: Callable[[str], bool],
        ensure: Callable[[str], Awaitable[None]],
        forget: Callable[[str], None],
        named: Callable[[str, str], None],
        client_mode: bool,
    ) -> "AdmittedProtocol":
        """Start answering DHT calls, unless in client mode.

        Args:
            control: The connection to p2pd.
            validator: Decides which records are stored and believed.
            is_admitted: Says whether a peer is a member.
            ensure: Makes a peer and us members of each other, or raises.
            forget: Drops what we hold about a peer's membership.
            named: Is told (peer, by whom) of every peer that another one names.
            client_mode: True: we ask and do not answer, and no one puts us into a routing table.
        """
        assert control.peer_id is not None
        self = cls(_initialized_with_create=True)
        self.p2p = control
        self.node_id = dht_id_of(control.peer_id)
        self.bucket_size, self.num_replicas, self.wait_timeout = BUCKET_SIZE, NUM_REPLICAS, CALL_S
        self.storage, self.cache = RecordStorage(SHARES, self.node_id), DHTLocalStorage(maxsize=1)
        self.routing_table = RoutingTable(self.node_id, BUCKET_SIZE, DEPTH_MODULO)
        self.rpc_semaphore = _Unlimited()
        self.client_mode, self.record_validator, self.authorizer = client_mode, validator, None
        self._is_admitted, self._ensure, self._forget, self._named = is_admitted, ensure, forget, named
        self._tasks = set()
        self.contradicted = _contradicted_unheard
        self.shunned = Shunned()
        self.node_info = dht_pb2.NodeInfo(node_id=b"" if client_mode else self.node_id.to_bytes())
        if not client_mode:
            await self.add_p2p_handlers(control)
        return self

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """Name the calls independently of this class's name; the name is part of the wire."""
        del namespace
        return f"DHTProtocol.{method_name}"

    def get_stub(self, peer: PeerID) -> AdmittedStub:
        """Give the calls to ``peer``, which admit it first."""
        stub = super(DHTProtocol, self).get_stub(self.p2p, peer)
        return AdmittedStub(stub, self._ensure, self._forget, peer)

    def _refuse_strangers(self, context: P2PContext) -> None:
        if not self._is_admitted(context.remote_id.to_base58()):
            raise NotAdmitted("not admitted")

    # -- answering ---------------------------------------------------------------------------------------------------

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        """Answer a member's ping; who goes by another id than its own is answered as one that has none."""
        self._refuse_strangers(context)
        if request.peer.node_id != dht_id_of(context.remote_id).to_bytes():
            request.peer.node_id = b""
        return await super().rpc_ping(request, context)

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Store what a member sends, record by record, if the validator lets it."""
        self._refuse_strangers(context)
        self._meet(request.peer, context.remote_id)
        aligned = len(request.keys) == len(request.subkeys) == len(request.values) == len(request.expiration_time)
        if not aligned or len(request.keys) > MAX_RECORDS_PER_STORE or any(len(key) != 20 for key in request.keys):
            raise ProtocolViolation("a store call's lists do not match")
        answers, left, sender = [], MAX_RECORDS_PER_STORE, context.remote_id.to_bytes()
        for key, *item in zip(request.keys, request.subkeys, request.values, request.expiration_time, strict=True):
            records = self._unpacked(*item)
            left -= len(records)
            # Each, also after a refusal.
            outcomes = [await self._store_record(sender, key, *record) for record in records] if left >= 0 else []
            answers.append(bool(outcomes) and all(outcomes))
        return dht_pb2.StoreResponse(store_ok=answers, peer=self.node_info)

    def _unpacked(self, tag: bytes, value: bytes, expires_s: float) -> list[StoredRecord]:
        """Read one item of a store call: a record, the records of a dictionary, or none where it is neither."""
        try:
            if tag == self.IS_DICTIONARY:
                return unpack_dictionary(value, wrapped=True)
            subkey = msgpack.unpackb(tag, max_ext_len=0, max_map_len=0, max_array_len=0)
        except (ProtocolViolation, ValueError, TypeError, msgpack.UnpackException):
            return []
        return [(subkey, value, expires_s)] if isinstance(subkey, bytes) else []

    async def _store_record(self, sender: bytes, key: bytes, subkey: bytes, value: bytes, expires_s: float) -> bool:
        await self._pause()
        key_id = DHTID.from_bytes(key)
        standing = self.storage.standing(key_id, subkey)
        if standing is not None and (standing[1] > expires_s or standing == (value, expires_s)):
            return bool(standing[1] == expires_s)  # nothing would change, so nothing need be checked
        worth = worth_of(sender, value)
        if standing is None and not self.storage.can_store(key_id, subkey, value, sender, worth):
            self.storage.num_refused += 1  # before signatures are checked in vain
            return False
        if not self.is_valid(key, subkey, value, expires_s) or not _may_store(sender, subkey, value):
            return False
        if standing is not None and standing[1] == expires_s:
            self.contradicted(standing[0], value)
        stored: bool = self.storage.store_subkey(key_id, subkey, value, expires_s, sender, worth)
        return stored

    def is_valid(self, key: bytes, subkey: bytes, value: bytes, expires_s: float) -> bool:
        """Ask the validator about one record."""
        if not math.isfinite(expires_s):
            return False
        accepted: bool = self.record_validator.validate(DHTRecord(key, self.serializer.dumps(subkey), value, expires_s))
        return accepted

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Answer with the records that stand here and, where one key is asked for, with the nearest members known."""
        self._refuse_strangers(context)
        self._meet(request.peer, context.remote_id)
        if len(request.keys) > MAX_KEYS_PER_CALL or any(len(key) != 20 for key in request.keys):
            raise ProtocolViolation("a find call asks for too much")
        asker, room = dht_id_of(context.remote_id), MAX_ANSWER_BYTES
        response = dht_pb2.FindResponse(results=[], peer=self.node_info)
        for key in map(DHTID.from_bytes, request.keys):
            result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
            standing = self.storage.get(key)
            if standing is not None and len(standing.value):
                value = self._packed(key, standing.value, room if len(request.keys) == 1 else None)
                if len(value) <= room:
                    room -= len(value)
                    result.type, result.value = dht_pb2.FOUND_DICTIONARY, value
                    result.expiration_time = standing.expiration_time
            if len(request.keys) == 1:
                self._name_neighbours(result, key, asker)
            response.results.append(result)
        return response

    def _packed(self, key: DHTID, standing: DictionaryDHTValue, room: int | None) -> bytes:
        """Pack what stands under a key, or, given its room in an answer, as much as fits."""
        value: bytes = self.serializer.dumps(standing)
        if room is None or len(value) <= room:
            return value
        part = DictionaryDHTValue()
        for subkey, envelope, expires_s in some_that_fit(self.storage.records(key), room, random.SystemRandom()):
            part.store(subkey, envelope, expires_s)
        return bytes(self.serializer.dumps(part))

    async def rpc_held(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """Answer with a digest of what stands here under each key, and, where one key is asked for, with neighbours."""
        self._refuse_strangers(context)
        self._meet(request.peer, context.remote_id)
        if len(request.keys) > MAX_KEYS_PER_CALL or any(len(key) != 20 for key in request.keys):
            raise ProtocolViolation("a held call asks for too much")
        response = dht_pb2.FindResponse(results=[], peer=self.node_info)
        for key in map(DHTID.from_bytes, request.keys):
            result = dht_pb2.FindResult(type=dht_pb2.FOUND_REGULAR, value=self.storage.digest(key))
            if len(request.keys) == 1:
                self._name_neighbours(result, key, dht_id_of(context.remote_id))
            response.results.append(result)
        return response

    def _name_neighbours(self, result: dht_pb2.FindResult, key: DHTID, asker: DHTID) -> None:
        for node_id, peer in self.routing_table.get_nearest_neighbors(key, k=BUCKET_SIZE, exclude=asker):
            result.nearest_node_ids.append(node_id.to_bytes())
            result.nearest_peer_ids.append(peer.to_bytes())

    def _meet(self, info: dht_pb2.NodeInfo, peer: PeerID) -> None:
        """Put a member that called or answered us into the routing table, if it answers calls itself."""
        self.shunned.answered(peer)
        if info.node_id and info.node_id == dht_id_of(peer).to_bytes():
            self._spawn(self.update_routing_table(dht_id_of(peer), peer))

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def shutdown(self) -> None:
        """Stop what this side still does; p2pd ends right after, so its handlers need not be taken off one by one."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def call_find(
        self, peer: PeerID, keys: Collection[DHTID], findings: Mapping[DHTID, Findings] = MappingProxyType({})
    ) -> dict[DHTID, tuple[list[StoredRecord], dict[DHTID, PeerID]]] | None:
        """Ask a peer for records and neighbours; None when it does not answer.

        Args:
            peer: Whom to ask.
            keys: For what.
            findings: Of some of the keys; take in what is believed, and save checking what they know already.

        Returns:
            For each key the records that the validator lets pass; where there is one key alone, also the neighbours
            whose id is their own. Of several keys those may come empty whose records did not fit into the answer.
        """
        keys = list(keys)
        response = await self._ask(peer, "rpc_find", keys)
        if response is None:
            return None
        answers: dict[DHTID, tuple[list[StoredRecord], dict[DHTID, PeerID]]] = {key: ([], {}) for key in keys}
        for key, result in zip(keys, response.results, strict=False):
            found = findings[key] if key in findings else Findings(self.contradicted, MAX_SUBKEYS)
            answers[key] = (await self._believed(key, result, found), self._neighbours(result, peer))
        return answers

    async def call_held(
        self, peer: PeerID, keys: Sequence[DHTID]
    ) -> dict[DHTID, tuple[bytes, dict[DHTID, PeerID]]] | None:
        """Ask a peer for digests of what it holds, as ``RecordStorage.digest`` makes them; None: it does not answer.

        Returns:
            For each key the digest, and, where there is one key alone, neighbours whose id is their own.
        """
        response = await self._ask(peer, "rpc_held", keys)
        if response is None:
            return None
        answers: dict[DHTID, tuple[bytes, dict[DHTID, PeerID]]] = {key: (b"", {}) for key in keys}
        for key, result in zip(keys, response.results, strict=False):
            answers[key] = (bytes(result.value[:DIGEST_BYTES]), self._neighbours(result, peer))
        return answers

    async def _ask(self, peer: PeerID, call: str, keys: Sequence[DHTID]) -> dht_pb2.FindResponse | None:
        if self.shunned.is_shunned(peer, time.monotonic()):
            return None
        request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in keys], peer=self.node_info)
        try:
            response = await getattr(self.get_stub(peer), call)(request, timeout=CALL_S)
        except (DhtError, TimeoutError, OSError) as error:
            logger.debug("%s at %s: %s", call, peer, error)
            self.shunned.failed(peer, time.monotonic())
            await self.update_routing_table(None, peer, responded=False)
            return None
        self._meet(response.peer, peer)
        return response

    async def _believed(self, key: DHTID, result: dht_pb2.FindResult, findings: Findings) -> list[StoredRecord]:
        if result.type != dht_pb2.FOUND_DICTIONARY:
            return []
        try:
            records = unpack_dictionary(result.value, wrapped=True)
        except ProtocolViolation as error:
            logger.debug("an answer holds %s", error)
            return []
        key_id = key.to_bytes()
        believed = []
        await findings.prepare([record for record in records if not findings.knows(record)])
        for record in records:
            if not findings.knows(record):
                await self._pause()
                if not self.is_valid(key_id, *record):
                    continue
                findings.take(record)
            believed.append(record)
        return believed

    async def _pause(self) -> None:
        """Let others run now and then: a large answer holds thousands of signatures of 0.1 ms each."""
        self._num_checked += 1
        if self._num_checked % CHECKS_AT_ONCE == 0:
            await asyncio.sleep(0)

    def _neighbours(self, result: dht_pb2.FindResult, named_by: PeerID) -> dict[DHTID, PeerID]:
        neighbours = {}
        pairs = zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False)
        own_id, namer = self.node_id.to_bytes(), peer_id_to_str(named_by.to_bytes())
        for node_id, peer_bytes in list(pairs)[:BUCKET_SIZE]:
            known = _read_peer(peer_bytes)
            if known is not None and node_id == known[1].to_bytes() != own_id:
                peer, peer_dht_id, name = known
                neighbours[peer_dht_id] = peer
                self._named(name, namer)
        return neighbours

    async def call_store(
        self,
        peer: PeerID,
        keys: Sequence[DHTID],
        values: Sequence[bytes | DictionaryDHTValue],
        expiration_time: float | Sequence[float],
        subkeys: Sequence[bytes | None] | None = None,
        in_cache: bool | Sequence[bool] | None = None,
    ) -> list[bool] | None:
        """Ask a peer to store records; in as many calls as p2pd's message limit needs. None when it does not answer."""
        del in_cache
        expiries = [expiration_time] * len(keys) if isinstance(expiration_time, float) else list(expiration_time)
        marks = [None] * len(keys) if subkeys is None else list(subkeys)
        items = list(zip(keys, values, expiries, marks, strict=True))
        answers: list[bool] = []
        for part in _parts(items):
            part_keys, part_values, part_expiries, part_marks = map(list, zip(*part, strict=True))
            stored = await super().call_store(peer, part_keys, part_values, part_expiries, part_marks)
            if stored is None:
                return None
            answers.extend(stored)
        return answers

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """Note that a peer did or did not answer, if the id it goes by is its own."""
        if peer_id == self.p2p.peer_id or (node_id is not None and node_id != dht_id_of(peer_id)):
            return
        if responded and node_id is not None:
            asked = self.routing_table.add_or_update_node(node_id, peer_id)
            self._forget_spare(node_id)
            if asked is not None:  # its bucket is full: whoever was silent longest there gives way if it is gone
                self._spawn(self.call_ping(asked[1]))
        elif not responded:
            known = self.routing_table.get(peer_id=peer_id)
            if known is not None:
                del self.routing_table[known]

    def _forget_spare(self, node_id: DHTID) -> None:
        """Keep as many members in reserve for a bucket as stand in it; the one not heard of for longest goes."""
        table = self.routing_table
        spare = table.buckets[table.get_bucket_index(node_id)].replacement_nodes
        if len(spare) > BUCKET_SIZE:
            del table[next(iter(spare))]


def worth_of(sender: bytes, envelope: bytes) -> Worth:
    """Say how long a record stays where its sender must make room, if it is valid."""
    try:
        opened = Envelope.from_bytes(envelope)
    except BadRecord:
        return Worth.KEPT
    if opened.kind == Kind.EQUIVOCATION:
        return Worth.LASTING
    return Worth.OWN if sender in opened.body else Worth.KEPT


def _may_store(sender: bytes, subkey: bytes, envelope: bytes) -> bool:
    """Say whether a member may store a valid record here."""
    return Envelope.from_bytes(envelope).kind not in OWN_KINDS or subkey[:PEER_ID_BYTES] == sender


def _parts(items: list[tuple[DHTID, Any, float, Any]]) -> Iterator[list[tuple[DHTID, Any, float, Any]]]:
    """Cut a store call so that no part is longer than p2pd carries, or takes long to check."""
    part: list[tuple[DHTID, Any, float, Any]] = []
    size = 0
    for item in items:
        value = item[1]
        item_bytes = 128 + (
            sum(128 + len(each) for _, (each, _) in value.items())
            if isinstance(value, DictionaryDHTValue)
            else len(value)
        )
        if part and (size + item_bytes > MAX_ANSWER_BYTES or len(part) == RECORDS_PER_CALL):
            yield part
            part, size = [], 0
        part.append(item)
        size += item_bytes
    if part:
        yield part


class _Unlimited:
    """Stands where stock hivemind has a semaphore that it never limits."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None
