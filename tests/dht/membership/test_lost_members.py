"""A member that we have lost the connection to is looked for before p2pd, which would then shun it, dials it."""

import asyncio
import socket

import pytest

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.handshake import Card, membership_key
from dht.membership.members import HELLO_S, Membership


class Daemon:
    """A p2pd that has the given connections, and notes what it is asked to dial."""

    def __init__(self) -> None:
        self.connected: set[str] = set()
        self.dialed: list[str] = []

    async def connect(self, peer_id, addresses, timeout_s):
        self.dialed.append(peer_id)
        raise PeerUnreachable("dial backoff")

    async def connected_peers(self):
        return self.connected

    async def open_stream(self, peer_id, protocol):
        await self.connect(peer_id, (), 0.0)

    async def handle_stream(self, protocol, handler):
        pass


@pytest.fixture
def port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
async def listening():
    """A multiaddr at which somebody listens."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    yield f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
def known(port):
    """A p2pd, our membership over it, and a member that was at ``port``."""
    daemon, member = Daemon(), Identity.ephemeral().peer_id
    ours = Identity.ephemeral().peer_id
    membership = Membership(daemon, membership_key("swarm", None), ours, answers_dht=True, addresses=list)
    membership._admit(member, Card(bytes(16), 0, True, (f"/ip4/127.0.0.1/tcp/{port}",)))
    return daemon, membership, member


async def test_a_connected_member_needs_nothing(known):
    daemon, membership, member = known
    daemon.connected.add(member)
    await membership.ensure(member)
    assert daemon.dialed == []


async def test_a_lost_member_where_nobody_listens_is_not_dialed(known):
    daemon, membership, member = known
    with pytest.raises(PeerUnreachable, match="no one listens there"):
        await membership.ensure(member)
    with pytest.raises(PeerUnreachable, match="no one listens there"):
        await membership.dial(member, "/any")
    assert daemon.dialed == []


async def test_members_that_are_lost_together_and_named_each_other_are_not_waited_for(known, listening):
    daemon, membership, _ = known
    lost = [Identity.ephemeral().peer_id for _ in range(4)]
    for peer in lost:
        membership._admit(peer, Card(bytes(16), 0, True, (listening,)))
        for namer in lost:
            membership.book.named(peer, namer)
    async with asyncio.timeout(HELLO_S / 4):
        failures = await asyncio.gather(
            *(membership.ensure(peer) for peer in lost),
            *(membership.dial(peer, "/any") for peer in lost),
            return_exceptions=True,
        )
    assert all(isinstance(failure, PeerUnreachable) for failure in failures)
    assert set(lost) <= set(daemon.dialed)
