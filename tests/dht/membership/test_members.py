"""The way to a peer: its own addresses first, then the relays that it names."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.members import Membership

PEER, RELAY = Identity.ephemeral().peer_id, Identity.ephemeral().peer_id
CIRCUIT = f"/ip4/192.0.2.1/tcp/1/p2p/{RELAY}/p2p-circuit"
SECOND = f"/ip4/192.0.2.2/tcp/1/p2p/{RELAY}/p2p-circuit"


class FakeTransport:
    """Knows at which addresses the peer is, and notes what is tried."""

    def __init__(self, *right: str) -> None:
        self.right, self.tried, self.connected = right, list[str](), set[str]()

    async def connect(self, peer_id: str, addresses: list[str], timeout_s: float) -> None:
        self.tried.extend(addresses)
        if not set(addresses) & set(self.right):
            raise PeerUnreachable("someone else")

    async def connected_peers(self) -> set[str]:
        return self.connected


@pytest.fixture
async def open_address() -> AsyncIterator[str]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    yield f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
    server.close()


def membership(transport: FakeTransport, *addresses: str, broken: tuple[str, ...] = ()) -> Membership:
    made = Membership(transport, bytes(32), "us", answers_dht=False, addresses=list)
    made.learn(PEER, addresses, own_word=True)

    async def detour(peer_id: str, circuit: str) -> None:
        transport.tried.append(circuit)
        if circuit in broken:
            raise PeerUnreachable("the relay does not answer")

    made.detour = detour
    return made


async def test_a_direct_address_is_taken_before_a_relay(open_address: str):
    transport = FakeTransport(open_address)
    await membership(transport, CIRCUIT, open_address)._reach(PEER)
    assert transport.tried == [open_address]


async def test_where_no_one_listens_a_relay_is_taken_then_the_next():
    transport = FakeTransport()
    await membership(transport, "/ip4/127.0.0.1/tcp/9", CIRCUIT, SECOND, broken=(CIRCUIT,))._reach(PEER)
    assert transport.tried == [CIRCUIT, SECOND]


async def test_someone_else_at_the_same_private_address_is_tried_once(open_address: str):
    transport = FakeTransport()
    ours = membership(transport, open_address, CIRCUIT)
    for _ in range(2):
        await ours._reach(PEER)
    assert transport.tried == [open_address, CIRCUIT, CIRCUIT]
    assert ours.book.direct(PEER) == ()


async def test_when_every_relay_fails_the_peer_is_unreachable():
    ours = membership(FakeTransport(), CIRCUIT, SECOND, broken=(CIRCUIT, SECOND))
    with pytest.raises(PeerUnreachable, match="the relay does not answer"):
        await ours._reach(PEER)


async def test_nothing_is_tried_while_there_is_a_connection():
    transport = FakeTransport()
    transport.connected = {PEER}
    await membership(transport, CIRCUIT)._reach(PEER)
    assert transport.tried == []
