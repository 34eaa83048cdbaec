"""Routes cover the model in order, without gap or overlap, and say what is missing where they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.directory import Directory
from dht.records import EMBEDS, HEADS, ServerState
from node.client.latencies import Latencies
from node.client.offers import Objective, Policy
from node.client.route import Route, Stage, plan_route
from node.errors import MissingBlocks
from tests.node.client.announcements import EVERYONE, MANIFEST, NUM_BLOCKS, server


def route_over(*servers, policy=EVERYONE, num_blocks=NUM_BLOCKS, **other):
    directory = Directory(MANIFEST, servers)
    return plan_route(directory, Latencies.of(servers, {}), {}, policy, num_blocks=num_blocks, **other)


def drawn(route):
    return str(route)


def test_the_route_is_the_chain_of_servers_as_drawn():
    assert drawn(route_over(server("a", 0, 3), server("b", 3, 6), server("c", 6, 8))) == "0:3 on a, 3:6 on b, 6:8 on c"


def test_a_server_of_the_whole_model_is_taken_alone():
    assert drawn(route_over(server("a", 0, 4), server("b", 4, 8), server("c", 0, 8))) == "0:8 on c"


def test_servers_that_overlap_each_do_their_part():
    assert drawn(route_over(server("a", 0, 5), server("b", 3, 8))) == "0:5 on a, 5:8 on b"


def test_the_faster_of_two_equal_spans_is_taken_and_then_the_lower_id():
    slow, fast = server("a", 0, 8, throughput=10_000), server("b", 0, 8, throughput=20_000)
    assert drawn(route_over(slow, fast)) == "0:8 on b"
    assert drawn(route_over(server("b", 0, 8), server("a", 0, 8))) == "0:8 on a"


def test_a_longer_span_is_preferred_to_faster_ones_that_cost_another_stage():
    whole = server("c", 0, 8, throughput=1_000_000)
    assert drawn(route_over(server("a", 0, 4, throughput=2_000_000), server("b", 4, 8), whole)) == "0:8 on c"
    fast = [server(name, *span, throughput=100_000_000) for name, span in (("a", (0, 4)), ("b", (4, 8)))]
    slow = server("c", 0, 8, throughput=100_000)
    assert drawn(route_over(*fast, slow)) == "0:4 on a, 4:8 on b"


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


@pytest.mark.parametrize(("start", "end", "drawing"), [(2, 6, "2:4 on a, 4:6 on b"), (0, 3, "0:3 on a"), (3, 3, "")])
def test_a_part_of_the_model_is_covered_alone(start, end, drawing):
    assert drawn(route_over(server("a", 0, 4), server("b", 4, 8), start=start, end=end)) == drawing


def test_the_way_from_the_stage_before_and_to_the_stage_behind_counts():
    near = server("near", 2, 6, neighbours=(("before", 300), ("behind", 300)))
    servers = (server("before", 0, 2), server("behind", 6, 8), server("alike", 2, 6), near)
    latencies = Latencies.of(servers, dict.fromkeys(("before", "behind", "alike", "near"), 50_000))

    def planned(**between):
        return drawn(
            plan_route(
                Directory(MANIFEST, servers), latencies, {}, EVERYONE, num_blocks=NUM_BLOCKS, start=2, end=6, **between
            )
        )

    assert planned(before="before", after="behind") == "2:6 on near"
    assert planned() == "2:6 on alike"


def test_only_the_peers_that_were_allowed_are_used_and_the_message_says_so():
    servers = (server("a", 0, 8), server("b", 0, 4), server("c", 4, 8))
    assert drawn(route_over(*servers, policy=Policy(only=frozenset("bc")))) == "0:4 on b, 4:8 on c"
    with pytest.raises(MissingBlocks, match="None of the 2 peers that were allowed holds the blocks 4:8") as missing:
        route_over(*servers, policy=Policy(only=frozenset({"b", "elsewhere"})))
    assert "--only" in str(missing.value)
    with pytest.raises(MissingBlocks, match="No server holds the blocks 0:8"):
        route_over(policy=Policy(only=frozenset({"b"})))


def test_the_widest_route_shares_the_work_among_many():
    servers = [server(name, 0, 8) for name in "abcd"]
    widest = route_over(*servers, policy=Policy(Objective.WIDEST))
    assert [stage.end - stage.start for stage in widest.stages] == [2, 2, 2, 2]
    assert len(route_over(*servers).stages) == 1


def test_a_server_that_is_not_its_score_s_worth_is_passed_over():
    servers = (server("a", 0, 8), server("b", 0, 8))
    directory, latencies = Directory(MANIFEST, servers), Latencies.of(servers, {})
    for scores, drawing in (({}, "0:8 on a"), ({"a": 0.5}, "0:8 on b"), ({"a": 0.5, "b": 0.4}, "0:8 on a")):
        assert drawn(plan_route(directory, latencies, scores, EVERYONE, num_blocks=8)) == drawing
    for none in (0.0, -1.0, float("nan")):
        with pytest.raises(MissingBlocks):
            plan_route(directory, latencies, {"a": none, "b": none}, EVERYONE, num_blocks=8)


spans = st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, NUM_BLOCKS)).map(lambda pair: (pair[0], sum(pair)))
rates = st.sampled_from([0, 1, 10**6, 2**48])


@given(st.lists(st.tuples(spans, rates, rates), max_size=6), st.sampled_from(Objective))
def test_a_route_covers_the_model_whatever_is_announced_or_names_what_is_missing(offers, objective):
    servers = [
        server(f"peer{number}", start, end, throughput=throughput, queue_us=min(queue, 60_000_000))
        for number, ((start, end), throughput, queue) in enumerate(offers)
    ]
    held = {block for entry in servers for block in range(entry.start, entry.end)}
    if not held.issuperset(range(NUM_BLOCKS)):
        with pytest.raises(MissingBlocks):
            route_over(*servers, policy=Policy(objective))
        return
    stages = route_over(*servers, policy=Policy(objective)).stages
    assert [block for stage in stages for block in range(stage.start, stage.end)] == list(range(NUM_BLOCKS))
    by_owner = {entry.owner: entry for entry in servers}
    assert all(by_owner[stage.peer_id].start <= stage.start < stage.end for stage in stages)
    assert all(stage.end <= by_owner[stage.peer_id].end for stage in stages)
    assert len({stage.peer_id for stage in stages}) == len(stages)
