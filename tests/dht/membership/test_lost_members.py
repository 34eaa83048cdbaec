"""A member that we have lost the connection to is looked for before p2pd, which would then shun it, dials it."""

import socket

import pytest

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.handshake import Card, membership_key
from dht.membership.members import Membership


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
