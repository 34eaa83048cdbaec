"""An outsider knows a private swarm's address and every name that its nodes serve, but not its secret."""

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import AsyncIterator

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PHandlerError
from hivemind.proto import dht_pb2
from hivemind.utils.multiaddr import Multiaddr

from dht.codec import decode, encode
from dht.errors import NotAdmitted, PeerUnreachable
from dht.identity import Identity
from dht.membership.circuits import ARRIVE_PROTOCOL, CARRY_PROTOCOL, RESERVE_PROTOCOL
from dht.membership.handshake import Card, Initiator, Responder, membership_key
from dht.membership.members import HELLO_PROTOCOL, MAX_HELLOS, PEERS_PROTOCOL, read_message, write_message
from dht.membership.speed import SPEED_PROTOCOL
from dht.parameters import JoinCode
from dht.records import seal
from dht.swarm import Stream, Swarm
from tests.dht.samples import SECRET, announcement

KEY = membership_key("lab", SECRET)


@contextlib.asynccontextmanager
async def private_node() -> AsyncIterator[Swarm]:
    async with Swarm(Identity.ephemeral(), name="lab", secret=SECRET, carry=True) as node:
        served: list[str] = []

        async def application(stream: Stream) -> None:
            served.append(stream.peer_id)

        await node.serve("/test/application/1", application)
        await node.store(seal(announcement(node._identity), node._identity))
        yield node
        assert served == []
        assert node.members() == []


@contextlib.asynccontextmanager
async def raw_client(node: Swarm) -> AsyncIterator[P2P]:
    """Stock hivemind's libp2p client, connected to ``node``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        p2p = await P2P.create(nat_port_map=False, auto_nat=False, use_relay=False)
    try:
        transport = [Multiaddr(address.partition("/p2p/")[0]) for address in node.addresses]
        await p2p._client.connect(PeerID.from_base58(node.peer_id), transport)
        yield p2p
    finally:
        await p2p.shutdown()
        p2p._child = p2p._client = p2p._listen_task = p2p._reader_task = None


async def open_stream(p2p: P2P, node: Swarm, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    _, reader, writer = await p2p.call_binary_stream_handler(PeerID.from_base58(node.peer_id), name)
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_every_stream_handler_but_hello_is_closed_to_a_stranger_with_one_byte_at_most():
    async with private_node() as node, raw_client(node) as p2p:
        names = set(node._control._stream_handlers)
        relay = {ARRIVE_PROTOCOL, CARRY_PROTOCOL, RESERVE_PROTOCOL}
        assert names == {HELLO_PROTOCOL, PEERS_PROTOCOL, SPEED_PROTOCOL, *relay, "/test/application/1"}
        for name in names - {HELLO_PROTOCOL}:
            reader, writer = await open_stream(p2p, node, name)
            writer.write(encode([]))
            async with asyncio.timeout(2):
                # A node that closes without reading what we wrote may lose its one byte on the way.
                assert await reader.read() in (b"\x00", b"")
            await close(writer)


async def test_every_call_of_the_dht_is_refused_to_a_stranger():
    async with private_node() as node, raw_client(node) as p2p:
        peer, key = PeerID.from_base58(node.peer_id), DHTID.generate(source=b"key")
        calls = {
            "DHTProtocol.rpc_ping": (dht_pb2.PingRequest(), dht_pb2.PingResponse),
            "DHTProtocol.rpc_find": (dht_pb2.FindRequest(keys=[key.to_bytes()]), dht_pb2.FindResponse),
            "DHTProtocol.rpc_held": (dht_pb2.FindRequest(keys=[key.to_bytes()]), dht_pb2.FindResponse),
            "DHTProtocol.rpc_store": (dht_pb2.StoreRequest(keys=[key.to_bytes()]), dht_pb2.StoreResponse),
        }
        assert set(node._control._unary_handlers) == set(calls)
        for name, (request, answer) in calls.items():
            with pytest.raises(P2PHandlerError, match="not admitted"):
                async with asyncio.timeout(2):
                    await p2p.call_protobuf_handler(peer, name, request, answer)


async def test_stock_hivemind_cannot_join_read_or_write():
    async with private_node() as node, raw_client(node) as p2p:
        with pytest.raises(RuntimeError, match="bootstrap failed"):
            await DHTNode.create(p2p=p2p, initial_peers=node.addresses, wait_timeout=1)
        stranger = await DHTProtocol.create(p2p, DHTID.generate(source=b"stranger"), 20, 5, 5, 1.0, client_mode=True)
        peer = PeerID.from_base58(node.peer_id)
        assert await stranger.call_ping(peer) is None
        assert await stranger.call_find(peer, [DHTID.generate(source=b"key")]) is None
        assert await stranger.call_store(peer, [DHTID.generate(source=b"key")], [b"value"], time.time() + 60) is None
        assert p2p.peer_id.to_base58() not in [str(p) for p in node._overlay.protocol.routing_table.uid_to_peer_id]
        assert not node._overlay.protocol.routing_table.uid_to_peer_id


@pytest.mark.parametrize("secret", [None, b"w" * 32])
async def test_our_own_client_without_the_secret_is_let_into_nothing(secret: bytes | None):
    async with private_node() as node, Swarm(Identity.ephemeral(), name="lab", secret=secret) as outsider:
        for name in (PEERS_PROTOCOL, SPEED_PROTOCOL, "/test/application/1"):
            with pytest.raises(NotAdmitted):
                await outsider.dial(node.peer_id, name, addresses=node.addresses)
        with pytest.raises(NotAdmitted):
            await outsider.ping(node.peer_id)
        outsider._membership._members[node.peer_id] = Card(b"i" * 16, 0, True, ())  # pretends that it was let in
        peer = PeerID.from_base58(node.peer_id)
        assert await outsider._overlay.protocol.call_find(peer, [DHTID.generate(source=b"key")]) is None
        assert node.validator.refusals.total() == 0
        with pytest.raises(NotAdmitted):
            await Swarm(Identity.ephemeral(), join=JoinCode(tuple(node.addresses), "lab", b"", secret)).__aenter__()


async def test_a_proof_without_the_key_is_refused_and_counted():
    async with private_node() as node, raw_client(node) as p2p:
        own = p2p.peer_id.to_base58()
        reader, writer = await open_stream(p2p, node, HELLO_PROTOCOL)
        side = Initiator(membership_key("lab", b"w" * 32), own, node.peer_id, os.urandom(32))
        await write_message(writer, side.hello())
        await write_message(writer, side.prove(await read_message(reader, 4096), Card(b"i" * 16, 0, True, ())))
        refusal = decode(await read_message(reader, 4096), 4096)
        assert refusal[:2] == [1, 1]
        assert await reader.read() == b""  # and no proof or address of the node
        await close(writer)
        assert node._membership.refused["WRONG_KEY"] == 1


async def test_the_nodes_own_proof_cannot_be_reflected_to_it():
    async with private_node() as node, raw_client(node) as p2p:
        own = p2p.peer_id.to_base58()
        first_reader, first = await open_stream(p2p, node, HELLO_PROTOCOL)
        second_reader, second = await open_stream(p2p, node, HELLO_PROTOCOL)
        await write_message(first, encode([1, bytes(32)]))
        _, nonce = decode(await read_message(first_reader, 4096), 4096)
        await write_message(second, encode([1, nonce]))
        await read_message(second_reader, 4096)
        forged = Responder(KEY, own, node.peer_id, nonce)  # what a reflected answer would look like, at its very best
        forged._other_nonce = bytes(32)
        _, card, mac = decode(forged.prove(Card(b"i" * 16, 0, True, ())), 4096)
        await write_message(first, encode([card, mac]))
        assert decode(await read_message(first_reader, 4096), 4096)[:2] == [1, 1]
        await close(first)
        await close(second)


async def test_hellos_are_bounded_in_number_size_and_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dht.membership.members.HELLO_S", 1.0)
    async with private_node() as node, raw_client(node) as p2p:
        streams = [await open_stream(p2p, node, HELLO_PROTOCOL) for _ in range(MAX_HELLOS + 10)]
        await asyncio.sleep(0.2)
        assert node._membership._answering.total() <= 2
        assert node._membership.refused["BUSY"] >= MAX_HELLOS
        async with asyncio.timeout(3):
            for reader, _ in streams:
                await reader.read()  # every one is closed, the silent ones after a second
        for _, writer in streams:
            await close(writer)
        assert node._membership._answering.total() == 0

        reader, writer = await open_stream(p2p, node, HELLO_PROTOCOL)
        writer.write(b"\xff\xff" + bytes(100))
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        await close(writer)


@pytest.mark.parametrize("junk", [b"", b"\xc0", b"\x92\x01", b"\x90", b"\x92\x09\xc4\x20" + bytes(32), bytes(500)])
async def test_junk_instead_of_a_hello_ends_the_stream_and_nothing_else(junk: bytes):
    async with private_node() as node, raw_client(node) as p2p:
        reader, writer = await open_stream(p2p, node, HELLO_PROTOCOL)
        await write_message(writer, junk)
        async with asyncio.timeout(2):
            await reader.read()
        await close(writer)
        join = JoinCode(tuple(node.addresses), "lab", b"", SECRET)
        async with Swarm(Identity.ephemeral(), join=join) as member:
            assert member.members() == [node.peer_id]
            node._membership.forget(member.peer_id)


async def test_a_relay_or_a_second_dht_is_not_offered():
    async with private_node() as node, Swarm(Identity.ephemeral()) as outsider:
        await outsider._control.connect(node.peer_id, [each.partition("/p2p/")[0] for each in node.addresses], 5.0)
        for name in ("/ipfs/kad/1.0.0", "/libp2p/circuit/relay/0.2.0/hop", "/floodsub/1.0.0", "/meshsub/1.1.0"):
            with pytest.raises(PeerUnreachable, match="protocols not supported"):
                await outsider._control.open_stream(node.peer_id, name)
