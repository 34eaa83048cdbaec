"""Opening a session: servers that refuse or are gone are planned around, whatever they say of themselves."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dht.directory import Directory
from dht.errors import PeerUnreachable
from dht.records import ServerState
from dht.standing.ranks import Rank, Ranked, Ranks
from node.client import network, outlook
from node.client.audit_book import MAX_IN_VAIN, AuditResult, Outcome
from node.client.chain import StageFailed
from node.client.loop_thread import LoopThread
from node.client.network import Network
from node.client.offers import Policy
from node.client.outlook import Outlook, Wanted
from node.errors import MissingBlocks, Refused
from tests.node.client.announcements import MANIFEST, NUM_BLOCKS, server


class PingableSwarm:
    parameters = None

    async def ping(self, peer_id):
        return 0.001

    async def dial(self, peer_id, protocol, *, addresses=(), timeout_s=5.0):
        raise PeerUnreachable("nobody is dialled here")


class OpenedChain:
    def __init__(self, route):
        self.route = route
        self.faults = []

    def distrust(self, fault):
        self.faults.append(fault.peer_id)

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


class Ghosts:
    """A swarm whose directory the test writes; peers of ``dead`` answer nobody."""

    def __init__(self, *servers):
        self.servers, self.dead, self.pinged = list(servers), set(), []

    async def ping(self, peer_id):
        self.pinged.append(peer_id)
        if peer_id in self.dead:
            raise PeerUnreachable(f"peer {peer_id} does not answer")
        return 0.001


@pytest.fixture
def ghosts(monkeypatch):
    """A client's outlook on servers ``dead``, which promises the most, and ``alive``; the clock is the test's."""
    swarm = Ghosts(server("dead", 0, NUM_BLOCKS, throughput=9_000_000, t=5), server("alive", 0, NUM_BLOCKS, t=5))

    async def read_directory(*_):
        return Directory(MANIFEST, tuple(swarm.servers))

    monkeypatch.setattr(outlook, "read_directory", read_directory)
    clock = SimpleNamespace(now_s=1000.0, time=lambda: 0.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(outlook, "time", clock)
    return Outlook(swarm, MANIFEST, NUM_BLOCKS), swarm, clock


async def route_of(view, **wanted):
    """Return the peers of the route that a new session would take."""
    route = await view.plan(Wanted(0, NUM_BLOCKS, needs_ends=False, is_new=True, **wanted))
    return [stage.peer_id for stage in route.stages]


async def test_a_dead_peer_is_in_no_route_after_its_first_failed_dial_and_back_when_it_announces_itself(ghosts):
    view, swarm, clock = ghosts
    assert await route_of(view) == ["dead"]
    view.failed("dead", PeerUnreachable("no answer"))
    for _ in range(20):
        assert await route_of(view) == ["alive"]
        clock.now_s += 20.0
    swarm.servers[0] = replace(swarm.servers[0], t=6)
    await view.look()
    assert await route_of(view) == ["dead"]


async def test_a_ping_that_fails_is_a_dial_that_fails(ghosts):
    view, swarm, _ = ghosts
    swarm.dead.add("dead")
    assert await route_of(view) == ["alive"]
    assert "failed 0 s ago: peer dead does not answer" in view.last_question.left_out.values()


async def test_a_dead_peer_is_taken_all_the_same_where_there_is_no_other(ghosts):
    view, _, clock = ghosts
    for peer in ("dead", "alive"):
        view.failed(peer, PeerUnreachable("no answer"))
        clock.now_s += 1.0
    assert await route_of(view) == ["dead"]
    with pytest.raises(MissingBlocks):
        await route_of(view, without=frozenset({"dead", "alive"}))


async def test_what_failed_is_forgotten_on_request(ghosts):
    view, _, _ = ghosts
    view.failed("dead", PeerUnreachable("no answer"))
    assert await route_of(view) == ["alive"]
    view.forget()
    assert await route_of(view) == ["dead"]


async def test_only_peers_that_may_be_used_are_asked_for_their_round_trips(ghosts):
    _, swarm, _ = ghosts
    swarm.servers.append(server("drains", 0, NUM_BLOCKS, state=ServerState.DRAINING))
    view = Outlook(swarm, MANIFEST, NUM_BLOCKS, Policy(only=frozenset({"alive", "drains"})))
    assert await route_of(view) == ["alive"]
    assert set(swarm.pinged) == {"alive"}


def test_the_last_session_s_route_is_explained(client):
    made, _, refusals = client
    assert made.explain() is None
    refusals.append(Refused("full", "No room.", retryable=True, retry_after_s=5.0))
    made.open(1, (), 64, "float32")
    good, evil = sorted(made.explain().candidates, key=lambda entry: entry.taken is None)
    assert (good.peer_id, good.taken, good.reason) == ("good", (0, NUM_BLOCKS), "")
    assert evil.peer_id == "evil"
    assert evil.reason.startswith("it failed in this session")


def test_of_servers_that_have_all_failed_each_is_tried_in_turn(client):
    made, _, _ = client

    def planned():
        (stage,) = made._loop.run(made.plan(0, NUM_BLOCKS, set(), needs_ends=False))
        return stage.peer_id

    tried = []
    for _ in range(5):
        tried.append(planned())
        made.failed(tried[-1], PeerUnreachable("no one listens there"))
    assert tried == ["evil", "good", "evil", "good", "evil"]


def test_a_server_that_failed_a_while_ago_opens_a_session_where_there_is_no_other(client):
    made, asked, _ = client
    for peer_id in ("good", "evil"):
        made.failed(peer_id, PeerUnreachable("no one listens there"))
    made.open(1, (), 64, "float32")
    assert asked == ["good"]


def test_a_server_left_out_before_opens_a_session_when_the_other_one_refuses_now(client):
    made, asked, refusals = client
    refusals.append(Refused("full", "No room.", retryable=True, retry_after_s=5.0))
    made.failed("good", PeerUnreachable("no one listens there"))
    made.open(1, (), 64, "float32")
    assert asked == ["evil", "good"]


def audited(owner, outcome):
    return AuditResult("audited", bytes(16), 0, 3, outcome, "as it is", owner)


def test_a_server_that_has_failed_an_audit_is_used_no_more_not_even_where_there_is_no_other(client, caplog):
    made, asked, refusals = client
    refusals.append(Refused("full", "No room.", retryable=True))
    chain = made.open(1, (), 64, "float32")
    told = []
    made._loop.run(called(made._audited, audited("good", Outcome.FAIL)))
    assert chain.faults == ["good"], "running sessions go on without it, too"
    assert "found the server good at fault" in caplog.text
    made.on_audited = told.append
    made.forget()
    with pytest.raises(StageFailed):
        made.open(1, (), 64, "float32")
    assert asked == ["evil", "good", "evil"]
    made._loop.run(called(made._audited, audited("", Outcome.PASS)))
    assert [result.outcome for result in told] == [Outcome.PASS]


def test_what_is_found_in_a_duplicate_throws_no_doubt_on_an_answer(client, caplog):
    made, _, _ = client
    made._loop.run(called(made._audited, replace(audited("good", Outcome.FAIL), is_shadow=True)))
    assert "found the server good at fault" in caplog.text
    assert "Nothing of that session was in an answer" in caplog.text
    assert "ask again" not in caplog.text


def test_a_server_at_which_audits_keep_coming_to_nothing_is_left_out_for_a_while(client):
    made, asked, _ = client
    for number in range(MAX_IN_VAIN):
        assert not made._loop.run(called(made.outlook._avoidance.left_out, [], 0.0)), number
        result = audited("evil", Outcome.INCONCLUSIVE)
        made.audits.enter(result)
        made._loop.run(called(made._audited, result))
    made.open(1, (), 64, "float32")
    assert asked == ["good"]


@pytest.mark.parametrize(("asked", "parameters", "expected"), [
    (None, None, 20), (None, SimpleNamespace(audit_per_mille=7), 7), (0, SimpleNamespace(audit_per_mille=7), 0),
])  # fmt: skip
def test_how_much_is_audited_is_the_swarms_to_say_unless_the_client_does(asked, parameters, expected):
    assert network._per_mille(SimpleNamespace(parameters=parameters), asked) == expected


async def called(function, *arguments):
    return function(*arguments)


@pytest.mark.parametrize(
    ("given", "is_watched"),
    [
        ({}, False),
        ({"judge": lambda _: None}, True),
        ({"ask": lambda _: None}, True),
        ({"judge": lambda _: None, "audit_per_mille": 20}, False),
    ],
)
def test_servers_that_are_watched_are_audited_more_by_who_can_judge_and_has_named_no_rate(given, is_watched):
    loop = LoopThread()
    made = Network(
        loop, PingableSwarm(), contextlib.AsyncExitStack(), manifest=MANIFEST, num_blocks=NUM_BLOCKS,
        step_timeout_s=1.0, **given,
    )  # fmt: skip
    places = {"old": Ranked(Rank.ESTABLISHED, 1.0), "young": Ranked(Rank.ESTABLISHED, 1.0, is_watched=True)}
    try:
        auditor = made._auditor
        assert not auditor.is_watched("young"), "while nothing is known"
        for has_flow in (False, True):
            made.outlook.know(Ranks(has_flow, places))
            assert [auditor.is_watched(peer) for peer in ("old", "young", "new")] == [
                False, has_flow and is_watched, has_flow and is_watched
            ]  # fmt: skip
    finally:
        made.close()
