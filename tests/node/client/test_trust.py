"""Whom standing keeps out, where newcomers may serve, and that an attacker gets no more by what it announces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.directory import Directory
from dht.records import ServerState
from dht.standing.ranks import NEW, Rank, Ranked, Ranks
from node.client import outlook
from node.client.explain import explain
from node.client.outlook import Outlook, Wanted
from node.client.trust import MIN_ESTABLISHED, UNKNOWN, trust_of
from node.errors import MissingBlocks
from tests.node.client.announcements import MANIFEST, NUM_BLOCKS, server

GOOD = Ranked(Rank.ESTABLISHED, 1.0)
CONVICT, LIAR, ENDED = (Ranked(rank, 0.0) for rank in (Rank.CONVICTED, Rank.EQUIVOCATOR, Rank.ENDED))
FAST = 50_000_000


def ranks(*, has_flow=True, **ranked):
    return Ranks(has_flow, ranked)


def trust(servers, known):
    return trust_of(servers, known, NUM_BLOCKS)


def established(num, start=0, end=NUM_BLOCKS):
    names = [f"e{number}" for number in range(num)]
    return [server(name, start, end) for name in names], dict.fromkeys(names, GOOD)


def test_while_nothing_is_known_everybody_is_used_as_if_there_were_no_standing():
    assert trust([server("a", 0, 8)], None) == UNKNOWN


def test_while_nobody_is_trusted_only_proven_misconduct_keeps_anyone_out():
    servers = [server(name, 0, 8) for name in ("new", "convict", "liar", "ended")]
    found = trust(servers, ranks(has_flow=False, convict=CONVICT, liar=LIAR, ended=ENDED))
    assert set(found.barred) == {"convict", "liar", "ended"}
    assert "efedllm score convict --why" in found.barred["convict"]
    assert (found.scores, found.spans) == ({}, {})


def test_newcomers_serve_where_fewer_than_three_established_servers_do_and_nowhere_else():
    servers, places = established(MIN_ESTABLISHED, 0, 5)
    servers += [server("new", 2, 8), server("late", 0, 4), server("e9", 4, 6)]
    found = trust(servers, ranks(**places, e9=GOOD))
    assert found.spans == {"new": (5, 8)}
    assert set(found.barred) == {"late"}
    assert found.scores["new"] == NEW.weight < found.scores["e9"] == 1


def test_established_servers_that_are_not_online_are_not_counted():
    servers, places = established(MIN_ESTABLISHED)
    paused = [*servers[:-1], server(servers[-1].owner, 0, 8, state=ServerState.PAUSED), server("new", 0, 8)]
    assert trust(paused, ranks(**places)).spans == {"new": (0, 8)}


def test_a_newcomer_that_announces_everything_gets_one_run_of_what_is_rare_and_not_what_lies_between():
    servers, places = established(MIN_ESTABLISHED, 2, 6)
    assert trust([*servers, server("greedy", 0, 8)], ranks(**places)).spans == {"greedy": (0, 2)}
    assert trust([*servers, server("greedy", -5, 4000)], ranks(**places)).spans == {"greedy": (0, 2)}


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from([GOOD, NEW, CONVICT, LIAR])), max_size=12)
)
def test_no_newcomer_ever_serves_a_block_that_three_established_servers_hold(drawn):
    servers = [server(f"s{number}", start, end) for number, (start, end, _) in enumerate(drawn)]
    found = trust(servers, ranks(**{f"s{number}": place for number, (_, _, place) in enumerate(drawn)}))
    for number, (start, end, place) in enumerate(drawn):
        name = f"s{number}"
        assert (name in found.barred) or place in (GOOD, NEW)
        if name in found.spans:
            first, last = found.spans[name]
            assert start <= first < last <= end
            for block in range(first, last):
                assert sum(s <= block < e and p is GOOD for s, e, p in drawn) < MIN_ESTABLISHED


# ---------------------------------------------------------------------------------------------------- in the outlook


class PingableSwarm:
    async def ping(self, peer_id):
        return 0.001


@pytest.fixture
async def planned(monkeypatch):
    """Plans a route over servers, as a client that knows some ranks; returns who is in it, and the outlook."""
    made = []

    async def plan(servers, known, failed=()):
        async def read_directory(*_):
            return Directory(MANIFEST, tuple(servers))

        monkeypatch.setattr(outlook, "read_directory", read_directory)
        view = Outlook(PingableSwarm(), MANIFEST, NUM_BLOCKS)
        made.append(view)
        view.ranks = known
        await view.look()
        for peer in failed:
            view.failed(peer, TimeoutError())
        route = await view.plan(Wanted(0, NUM_BLOCKS, needs_ends=False, is_new=True))
        return {stage.peer_id: (stage.start, stage.end) for stage in route.stages}, view

    yield plan
    for view in made:
        await view.close()


async def test_a_convict_that_promises_the_most_is_not_used_and_the_explanation_says_why(planned):
    servers, places = established(1)
    route, view = await planned([*servers, server("evil", 0, 8, throughput=FAST)], ranks(**places, evil=CONVICT))
    assert route == {"e0": (0, 8)}
    told = {entry.peer_id: entry.reason for entry in explain(view.last_question).candidates}
    assert told["evil"].startswith("it was convicted of false work")


async def test_a_convict_is_not_used_even_where_there_is_nobody_else(planned):
    with pytest.raises(MissingBlocks):
        await planned([server("evil", 0, 8)], ranks(evil=CONVICT, has_flow=False))


async def test_a_whitewasher_under_a_new_name_gets_nothing_where_others_are_established(planned):
    servers, places = established(MIN_ESTABLISHED)
    route, view = await planned([*servers, server("fresh", 0, 8, throughput=FAST)], ranks(**places))
    assert set(route) < set(places)
    told = {entry.peer_id: entry.reason for entry in explain(view.last_question).candidates}
    assert told["fresh"] == "it is a newcomer, and its blocks have three established servers or more"


async def test_a_newcomer_takes_of_a_route_only_what_others_lack(planned):
    servers, places = established(MIN_ESTABLISHED, 0, 6)
    route, _ = await planned([*servers, server("fresh", 0, 8, throughput=FAST)], ranks(**places))
    assert route.pop("fresh") == (6, 8)
    assert set(route.values()) == {(0, 6)}


async def test_where_no_established_server_can_be_reached_newcomers_come_before_those_that_failed(planned):
    servers, places = established(MIN_ESTABLISHED)
    route, _ = await planned([*servers, server("fresh", 0, 8)], ranks(**places), failed=places)
    assert set(route) == {"fresh"}


async def test_among_the_good_the_fastest_is_used(planned):
    servers, places = established(2)
    quick = server("quick", 0, 8, throughput=FAST)
    route, _ = await planned([*servers, quick], ranks(**places, quick=Ranked(Rank.ESTABLISHED, 0.8)))
    assert set(route) == {"quick"}


async def test_on_probation_are_newcomers_that_routes_do_not_use_and_that_have_not_failed(planned):
    servers, places = established(MIN_ESTABLISHED, 0, 6)
    others = [server("fresh", 0, 6), server("gone", 2, 4), server("needed", 4, 8), server("evil", 0, 6)]
    others += [server("paused", 0, 6, state=ServerState.PAUSED), server("vast", 0, 4000)]
    route, view = await planned([*servers, *others], ranks(**places, evil=CONVICT), failed=["gone"])
    assert route["needed"] == (6, 8), "which has work without it"
    assert view.has_probation
    assert [newcomer.owner for newcomer in view.on_probation()] == ["fresh"]
    view.distrust("fresh", "it has failed an audit")
    assert view.on_probation() == []


async def test_where_newcomers_have_work_and_where_nothing_is_known_nobody_is_on_probation(planned):
    servers, places = established(MIN_ESTABLISHED - 1)
    for known in (ranks(**places), ranks(has_flow=False), None):
        _, view = await planned([*servers, server("fresh", 0, 8)], known)
        assert not view.has_probation
        assert view.on_probation() == []
