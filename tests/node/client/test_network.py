"""Opening a session: servers that refuse are planned around, whatever they say of themselves."""

import contextlib

import pytest

from dht.directory import Directory
from node.client import network, outlook
from node.client.chain import StageFailed
from node.client.loop_thread import LoopThread
from node.client.network import Network
from node.errors import Refused
from tests.node.client.announcements import MANIFEST, NUM_BLOCKS, server


class PingableSwarm:
    async def ping(self, peer_id):
        return 0.001


class OpenedChain:
    def __init__(self, route):
        self.route = route

    async def close(self):
        pass


@pytest.fixture
def client(monkeypatch):
    """A client of a swarm in which ``evil``, which promises the most, always refuses; and who was asked."""
    asked, refusals = [], []

    async def read_directory(*_):
        return Directory(MANIFEST, (server("evil", 0, NUM_BLOCKS, throughput=9_000_000), server("good", 0, NUM_BLOCKS)))

    async def open_chain(_, route, *__, **___):
        (stage,) = route.stages
        asked.append(stage.peer_id)
        if stage.peer_id == "evil":
            raise StageFailed(stage, refusals[0])
        return OpenedChain(route)

    monkeypatch.setattr(outlook, "read_directory", read_directory)
    monkeypatch.setattr(network, "open_chain", open_chain)
    loop = LoopThread()
    made = Network(
        loop, PingableSwarm(), contextlib.AsyncExitStack(), manifest=MANIFEST, num_blocks=NUM_BLOCKS, step_timeout_s=1.0
    )
    yield made, asked, refusals
    made.close()


@pytest.mark.parametrize("retry_after_s", [0.0, 0.001, 5.0, 1e6])
def test_a_server_that_refuses_is_asked_once_whatever_time_it_names(client, retry_after_s):
    made, asked, refusals = client
    refusals.append(Refused("full", "No room.", retryable=True, retry_after_s=retry_after_s))
    made.open(1, (), 64, "float32")
    assert asked == ["evil", "good"]


def test_a_server_that_refused_is_left_out_of_the_next_session_too(client):
    made, asked, refusals = client
    refusals.append(Refused("full", "No room.", retryable=True, retry_after_s=5.0))
    for _ in range(2):
        made.open(1, (), 64, "float32")
    assert asked == ["evil", "good", "good"]
