"""A client that joins a swarm of fifty nodes has a route within a second, its imports aside."""

import asyncio
import gc
import time

import pytest

from dht.identity import Identity
from dht.parameters import PUBLIC_NAME
from dht.records import seal
from dht.swarm import Swarm
from dht.testnet import testnet
from node.client.network import Network
from tests.node.client.announcements import MANIFEST, server

NUM_NODES = 50
NUM_BLOCKS = 24
SPAN = 6
ALLOWED_S = 1.0
ALLOWED_STARTS = 5
"""Where the machine is busy with other work, a route may take as long as so many bare p2pds need to start in a row; on
an idle machine that is less than a second."""
TRIES = 3
SEEN_SHARE = 0.9
"""Of the announcements: nodes that come all at once do not all agree at once on who stores a key, the less the busier
the machine is. A reader of such a swarm has seen 26 of 50 after they had announced themselves twice."""


def announcement_of(node, number):
    start = number * 5 % (NUM_BLOCKS - SPAN + 1)
    offer = server(node.peer_id, start, start + SPAN, throughput=1_000_000 + number, t=int(time.time()))
    return seal(offer, node._identity)


async def announce(nodes):
    told = await asyncio.gather(*(node.store(announcement_of(node, at)) for at, node in enumerate(nodes)))
    assert all(told)
    await asyncio.sleep(1.1)  # A later announcement has a later second.


def join_and_plan(code):
    """Return how many servers the client saw, and when it had joined, had seen them, and had its route, s from now."""
    began_s = time.perf_counter()
    network = Network.connect(
        manifest=MANIFEST, num_blocks=NUM_BLOCKS, join=None, initial_peers=code, step_timeout_s=10.0
    )
    try:
        joined_s = time.perf_counter()
        directory = network.directory()
        seen_s = time.perf_counter()
        route = network.route()
        planned_s = time.perf_counter()
        assert [stage.end for stage in route.stages][-1] == NUM_BLOCKS
        return len(directory.servers), joined_s - began_s, seen_s - began_s, planned_s - began_s
    finally:
        network.close()


async def start_alone():
    """Return how long a node of a swarm of its own takes to start, s."""
    began_s = time.perf_counter()
    async with Swarm(Identity.ephemeral()):
        return time.perf_counter() - began_s


@pytest.fixture
def frozen_garbage():
    """What other tests have left in this process, gigabytes perhaps, is not walked while fifty nodes live in it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.timeout(150)
@pytest.mark.usefixtures("frozen_garbage")
async def test_a_client_that_joins_fifty_nodes_has_a_route_within_a_second():
    began_s = time.perf_counter()
    async with testnet(NUM_NODES, name=PUBLIC_NAME) as nodes:
        await announce(nodes)  # As they come, and in each try once more, as every server does when its time is up.
        print(f"{NUM_NODES} nodes stand and have announced themselves after {time.perf_counter() - began_s:.1f} s")
        was_good = False
        for _ in range(TRIES):
            await announce(nodes)
            start_s = await start_alone()
            num_seen, joined_s, seen_s, planned_s = await asyncio.to_thread(join_and_plan, nodes[0].addresses)
            print(f"joined after {joined_s:.2f} s, directory of {num_seen} {seen_s:.2f} s, route {planned_s:.2f} s")
            print(f"a bare p2pd starts in {start_s:.2f} s")
            was_in_time = planned_s <= max(ALLOWED_S, ALLOWED_STARTS * start_s)
            was_good = was_in_time and num_seen >= SEEN_SHARE * NUM_NODES
            if was_good:
                break
    assert was_good
