"""Adversaries of the DHT: members that run our own code, changed for evil."""

import asyncio
import time
from collections.abc import Iterator, Sequence

from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.proto import dht_pb2

from dht.hardening.density import ID_SPACE
from dht.hardening.protocol import dht_id_of
from dht.identity import Identity
from dht.parameters import JoinCode
from dht.records import Kind, SignedRecord, key_bytes, seal
from dht.rules import DEFAULT_RULES
from dht.swarm import Swarm
from dht.work import receipts_key
from tests.dht.samples import receipt


def sealed(provider: Identity, consumer: Identity, **changes: object) -> SignedRecord:
    """A receipt of now."""
    epoch = DEFAULT_RULES.epoch_of(time.time())
    began = DEFAULT_RULES.start_of(epoch)
    made = receipt(provider, consumer, **{"epoch": epoch, "t_first": began, "t_last": began + 1, **changes})
    return seal(made, provider, consumer)


def key_id(signed: SignedRecord) -> DHTID:
    return DHTID.generate(source=signed.key)


def id_of(node: Swarm) -> DHTID:
    return dht_id_of(PeerID.from_base58(node.peer_id))


def standing(node: Swarm, signed: SignedRecord) -> bytes | None:
    """What a node itself holds at a record's place."""
    found = node._overlay.protocol.storage.standing(key_id(signed), signed.subkey)
    return None if found is None else found[0]


async def start(identities: Sequence[Identity], join: JoinCode, at_once: int = 4) -> list[Swarm]:
    """Start members, a few at a time; whoever calls ends them."""
    nodes = [Swarm(identity, join=join) for identity in identities]
    waiting: Iterator[Swarm] = iter(nodes)

    async def one_by_one() -> None:
        for node in waiting:
            await node.__aenter__()

    await asyncio.gather(*(one_by_one() for _ in range(at_once)))
    return nodes


async def stop(nodes: Sequence[Swarm]) -> None:
    await asyncio.gather(*(node.__aexit__(None, None, None) for node in nodes))


def mined(key: DHTID, num_tried: int, num_used: int) -> list[Identity]:
    """Grind keys, and keep those whose ids are nearest to a DHT key."""
    tried = [Identity.ephemeral() for _ in range(num_tried)]
    tried.sort(key=lambda identity: key.xor_distance(DHTID.generate(source=identity.peer_id_bytes)))
    return tried[:num_used]


def placed_at(first: float, last: float) -> Identity:
    """Grind a key whose id lies in a part of the id space, from one share of it to another."""
    while True:
        identity = Identity.ephemeral()
        if first <= int(DHTID.generate(source=identity.peer_id_bytes)) / ID_SPACE < last:
            return identity


def provider_at(first: float, last: float) -> Identity:
    """Grind a provider whose receipts of now have their key in a part of the id space."""
    epoch = DEFAULT_RULES.epoch_of(time.time())
    while True:
        identity = Identity.ephemeral()
        key = key_bytes(Kind.RECEIPT, receipts_key(identity.peer_id, epoch))
        if first <= int(DHTID.generate(source=key)) / ID_SPACE < last:
            return identity


def swallow(node: Swarm, fellows: Sequence[Swarm]) -> None:
    """Let a member say that it stores what it drops, hold nothing, and know nobody but its fellows."""
    fellow_ids = [PeerID.from_base58(fellow.peer_id) for fellow in fellows]

    async def store(request: bytes, remote: PeerID) -> bytes:
        num_records = len(dht_pb2.StoreRequest.FromString(request).keys)
        return dht_pb2.StoreResponse(store_ok=[True] * num_records, peer=info).SerializeToString()

    async def find(request: bytes, remote: PeerID) -> bytes:
        response = dht_pb2.FindResponse(results=[], peer=info)
        for key in dht_pb2.FindRequest.FromString(request).keys:
            nearest = sorted(fellow_ids, key=lambda peer: DHTID.from_bytes(key).xor_distance(dht_id_of(peer)))[:20]
            result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
            result.nearest_node_ids.extend(dht_id_of(peer).to_bytes() for peer in nearest)
            result.nearest_peer_ids.extend(peer.to_bytes() for peer in nearest)
            response.results.append(result)
        return response.SerializeToString()

    info = node._overlay.protocol.node_info
    node._control._unary_handlers["DHTProtocol.rpc_store"] = store
    node._control._unary_handlers["DHTProtocol.rpc_find"] = find
    node._control._unary_handlers["DHTProtocol.rpc_held"] = find
