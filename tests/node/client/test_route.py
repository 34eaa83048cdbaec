"""Routes cover the model in order, without gap or overlap, in as few stages as there can be."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.directory import Directory
from dht.records import EMBEDS, HEADS, Announcement, ServerState
from node.client.route import Route, Stage, plan_route
from node.errors import MissingBlocks

MANIFEST = bytes(32)
NUM_BLOCKS = 8


def server(owner, start, end, *, throughput=1000, state=ServerState.ONLINE, ends=0):
    return Announcement(
        manifest=MANIFEST,
        shard=0,
        owner=owner,
        t=1,
        life_s=60,
        state=state,
        start=start,
        end=end,
        dtype="float32",
        throughput_milli=throughput,
        max_length=1024,
        cache_free_tokens=1024,
        addresses=(f"/ip4/127.0.0.1/tcp/1/p2p/{owner}",),
        version="0.1.0",
        ends=ends,
    )


def route_over(*servers, avoid=(), num_blocks=NUM_BLOCKS, needs_ends=False):
    return plan_route(Directory(MANIFEST, servers), num_blocks, avoid, needs_ends=needs_ends)


def drawn(route):
    return str(route)


def test_the_route_is_the_chain_of_servers_as_drawn():
    assert drawn(route_over(server("a", 0, 3), server("b", 3, 6), server("c", 6, 8))) == "0:3 on a, 3:6 on b, 6:8 on c"


def test_a_server_of_the_whole_model_is_taken_alone():
    assert drawn(route_over(server("a", 0, 4), server("b", 4, 8), server("c", 0, 8))) == "0:8 on c"


def test_servers_that_overlap_each_do_their_part():
    assert drawn(route_over(server("a", 0, 5), server("b", 3, 8))) == "0:5 on a, 5:8 on b"


def test_the_faster_of_two_equal_spans_is_taken_and_then_the_lower_id():
    slow, fast = server("a", 0, 8, throughput=10), server("b", 0, 8, throughput=20)
    assert drawn(route_over(slow, fast)) == "0:8 on b"
    assert drawn(route_over(server("b", 0, 8), server("a", 0, 8))) == "0:8 on a"


def test_a_longer_span_is_preferred_to_a_faster_one():
    assert drawn(route_over(server("a", 0, 4, throughput=99999), server("b", 4, 8), server("c", 0, 8))) == "0:8 on c"


def test_a_stage_carries_the_addresses_of_its_server():
    assert route_over(server("a", 0, 8)) == Route((Stage("a", 0, 8, ("/ip4/127.0.0.1/tcp/1/p2p/a",)),))


def test_a_span_that_reaches_beyond_the_model_is_cut_to_it():
    assert drawn(route_over(server("a", 0, 99))) == "0:8 on a"


@pytest.mark.parametrize("state", [state for state in ServerState if state is not ServerState.ONLINE])
def test_a_server_that_is_not_online_is_not_used(state):
    with pytest.raises(MissingBlocks):
        route_over(server("a", 0, 8, state=state))
    assert drawn(route_over(server("a", 0, 8, state=state), server("b", 0, 8))) == "0:8 on b"


def test_a_peer_to_avoid_is_not_used():
    servers = (server("a", 0, 8), server("b", 0, 4), server("c", 4, 8))
    assert drawn(route_over(*servers, avoid={"a"})) == "0:4 on b, 4:8 on c"
    with pytest.raises(MissingBlocks):
        route_over(*servers, avoid={"a", "c"})


def test_every_block_that_nobody_holds_is_named_with_the_mend():
    with pytest.raises(MissingBlocks, match="No server holds the blocks 0:1, 3:5, 7:8 of 8") as missing:
        route_over(server("a", 1, 3), server("b", 5, 7))
    assert "--blocks 0:1" in str(missing.value)
    with pytest.raises(MissingBlocks, match="the blocks 0:8 of 8"):
        route_over()


BOTH = EMBEDS | HEADS


@pytest.mark.parametrize(
    ("servers", "drawing"),
    [
        ([("a", 0, 8, BOTH), ("b", 0, 8, 0)], "0:8 on a"),
        ([("a", 0, 8, EMBEDS), ("b", 4, 8, HEADS)], "0:7 on a, 7:8 on b"),
        ([("a", 0, 8, HEADS), ("b", 0, 2, EMBEDS)], "0:2 on b, 2:8 on a"),
        ([("a", 0, 8, 0), ("b", 0, 1, EMBEDS), ("c", 7, 8, HEADS)], "0:1 on b, 1:7 on a, 7:8 on c"),
        ([("a", 0, 5, EMBEDS), ("b", 5, 8, HEADS), ("c", 0, 8, 0)], "0:5 on a, 5:8 on b"),
    ],
)
def test_a_client_without_weights_begins_where_ids_are_embedded_and_ends_where_logits_are_computed(servers, drawing):
    offers = [server(owner, start, end, ends=ends) for owner, start, end, ends in servers]
    assert drawn(route_over(*offers, needs_ends=True)) == drawing


@pytest.mark.parametrize(
    ("ends", "lacking"), [(0, "embeds token ids"), (HEADS, "embeds token ids"), (EMBEDS, "computes logits")]
)
def test_an_end_that_nobody_offers_is_named_with_the_mend(ends, lacking):
    with pytest.raises(MissingBlocks, match=lacking) as missing:
        route_over(server("a", 0, 8, ends=ends), needs_ends=True)
    assert "--no-ends" in str(missing.value)
    with pytest.raises(MissingBlocks, match="blocks 3:8"):
        route_over(server("a", 0, 3, ends=EMBEDS), needs_ends=True)
    assert drawn(route_over(server("a", 0, 8, ends=ends))) == "0:8 on a"


spans = st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, NUM_BLOCKS)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(st.tuples(spans, st.integers(0, 3)), max_size=6))
def test_a_route_covers_the_model_with_the_fewest_stages_or_names_what_is_missing(offers):
    servers = [
        server(f"peer{number}", start, end, throughput=throughput)
        for number, ((start, end), throughput) in enumerate(offers)
    ]
    held = {block for entry in servers for block in range(entry.start, entry.end)}
    if not held.issuperset(range(NUM_BLOCKS)):
        with pytest.raises(MissingBlocks):
            route_over(*servers)
        return
    stages = route_over(*servers).stages
    assert [block for stage in stages for block in range(stage.start, stage.end)] == list(range(NUM_BLOCKS))
    by_owner = {entry.owner: entry for entry in servers}
    assert all(by_owner[stage.peer_id].start <= stage.start < stage.end for stage in stages)
    assert all(stage.end <= by_owner[stage.peer_id].end for stage in stages)
    assert len(stages) == fewest_stages(servers)
    assert route_over(*reversed(servers)).stages == stages


def fewest_stages(servers):
    """Try all sets of servers, smallest first."""
    for number in range(1, len(servers) + 1):
        for chosen in itertools.combinations(servers, number):
            held = {block for entry in chosen for block in range(entry.start, entry.end)}
            if held.issuperset(range(NUM_BLOCKS)):
                return number
    raise AssertionError("not covered")
