import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dht.announce import Announcer
from dht.directory import Directory, read_directory, read_models, serving
from dht.identity import Identity
from dht.records import Announcement, ManifestRecord, ServerState
from dht.swarm import Swarm
from dht.testnet import testnet
from tests.dht.samples import MANIFEST, announcement

OWNER = Identity.ephemeral()


def directory(*spans: tuple[int, int], state: ServerState = ServerState.ONLINE) -> Directory:
    servers = [replace(announcement(OWNER, start=start, end=end), state=state) for start, end in spans]
    return Directory(MANIFEST, serving(servers, time.time()))


def test_what_no_online_server_covers_is_missing():
    assert directory().missing(8) == [(0, 8)]
    assert directory((0, 8)).missing(8) == []
    assert directory((2, 4), (6, 7)).missing(8) == [(0, 2), (4, 6), (7, 8)]
    assert directory((4, 8), (0, 5)).missing(8) == []
    assert directory((0, 12)).missing(8) == []
    assert directory((10, 12)).missing(8) == [(0, 8)]
    assert directory((0, 8), state=ServerState.JOINING).missing(8) == [(0, 8)]
    assert directory((0, 8), state=ServerState.DRAINING).missing(8) == [(0, 8)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda span: (span[0], sum(span))), max_size=8))
def test_a_block_is_missing_exactly_when_no_span_holds_it(spans):
    missing = {block for start, end in directory(*spans).missing(16) for block in range(start, end)}
    assert missing == {block for block in range(16) if not any(start <= block < end for start, end in spans)}


def test_withdrawn_and_expired_servers_are_left_out_and_the_rest_is_sorted():
    now = time.time()
    here = announcement(OWNER, start=4, end=8)
    first = announcement(OWNER, start=0, end=4)
    gone = replace(here, state=ServerState.OFFLINE)
    old = announcement(OWNER, t=int(now) - 100)
    assert serving([here, "no announcement", gone, old, first], now) == (first, here)


async def test_a_directory_shows_joining_online_and_withdrawn_servers_and_each_model_once():
    async with testnet(3) as nodes:

        def make(node: Swarm, state: list[ServerState]):
            def records(t: int, life_s: int) -> list[Announcement | ManifestRecord]:
                model = ManifestRecord(MANIFEST, node.peer_id, t, life_s, "tiny", "llama", 8, 64, 100)
                offer = replace(announcement(node._identity, t=t), life_s=life_s, state=state[0])
                return [offer, model]

            return records

        states = [[ServerState.JOINING], [ServerState.ONLINE]]
        first = Announcer(nodes[1], nodes[1]._identity, make(nodes[1], states[0]))
        second = Announcer(nodes[2], nodes[2]._identity, make(nodes[2], states[1]))
        async with first:
            async with second:
                seen = await read_directory(nodes[0], MANIFEST, time.time())
                assert {server.owner: server.state for server in seen.servers} == {
                    nodes[1].peer_id: ServerState.JOINING,
                    nodes[2].peer_id: ServerState.ONLINE,
                }
                assert seen.missing(8) == [(4, 8)]
                assert [model.name for model in await read_models(nodes[0])] == ["tiny"]
            seen = await read_directory(nodes[0], MANIFEST, time.time())
            assert seen.missing(8) == [(0, 8)]
            states[0][0] = ServerState.ONLINE
            assert await first.update()
            assert (await read_directory(nodes[0], MANIFEST, time.time())).missing(8) == [(4, 8)]
        assert (await read_directory(nodes[0], MANIFEST, time.time())).servers == ()
