"""The verifier gives each server its turn, whatever comes of it, tells what it has found, and refuses to guess."""

import asyncio
import io
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dht.identity import Identity
from dht.records import EMBEDS, HEADS, Kind, ServerState
from dht.rules import DEFAULT_RULES
from node.calibrations.current import Current
from node.client.audit_book import AuditResult, Measured, Outcome, Verdict
from node.run import verifier as verifier_module
from node.run.events import Reporter
from node.run.verifier import VerifyOptions, _load, _Verifier
from node.verify.canary import Findings
from node.verify.canary_plan import Guise
from tests.dht.samples import MANIFEST, announcement
from tests.families import build
from tests.node.check.figures import calibration
from tests.node.client.test_accusation import opening_of
from tests.node.verify.tiny import TINY

SERVERS = [Identity.ephemeral() for _ in range(3)]
SPANS = ((0, 2), (2, 3), (3, 4))


def options(tmp_path, model="nowhere"):
    return VerifyOptions(str(model), None, tmp_path, "", None, None, 24, None, (), (), exit_with_stdin=False)


class Swarm:
    """Where three servers are announced."""

    def __init__(self):
        self.validator = SimpleNamespace(rules=DEFAULT_RULES)
        self.announced = [
            announcement(server, start=start, end=end) for server, (start, end) in zip(SERVERS, SPANS, strict=True)
        ]

    async def fetch(self, kind, key_parts):
        assert (kind, key_parts) == (Kind.ANNOUNCE, (MANIFEST, 0))
        return self.announced


class Publisher:
    def __init__(self):
        self.entered, self.num_published = [], 0

    def enter(self, result):
        self.entered.append(result)

    async def publish(self):
        self.num_published += 1
        return 1


class World:
    def __init__(self, tmp_path, monkeypatch):
        self.swarm, self.publisher = Swarm(), Publisher()
        self.out, self.err = io.StringIO(), io.StringIO()
        self.accused = []
        self.current = Current(calibration())
        self.guises, self.went_through, self.finds = [], [], lambda peers: Findings((), (), "no server answers")
        world = self

        class Canary:
            def __init__(self, guise):
                world.guises.append(guise)

            def run(self, model, peers, script):
                world.went_through.append(peers)
                return world.finds(peers)

            def stop(self):
                pass

        monkeypatch.setattr(verifier_module, "Canary", Canary)
        config = SimpleNamespace(max_position_embeddings=512)
        config.get_text_config = lambda: SimpleNamespace(vocab_size=100)
        checkpoint = SimpleNamespace(config=config, manifest32=MANIFEST, num_blocks=4, name="a model")
        judge = lambda opening: Verdict(Outcome.FAIL, "it is false") if opening == "false" else Verdict(Outcome.PASS)  # noqa: E731
        self.verifier = _Verifier(
            options(tmp_path),
            Reporter(events_json=True, out=self.out, err=self.err),
            self.swarm,
            SimpleNamespace(checkpoint=checkpoint),
            self.current,
            judge,
            self.publisher,
            SimpleNamespace(hold=self.accused.append),
        )
        self.verifier._chance = random.Random(0)

    def events(self, name):
        return [event for event in map(json.loads, self.out.getvalue().splitlines()) if event["event"] == name]


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def result(server, outcome=Outcome.INCONCLUSIVE, opening="true", owner=""):
    return AuditResult(server.peer_id, bytes(16), 0, 0, outcome, "", owner, opening)


async def test_each_server_has_its_turn_although_no_session_goes_through(world):
    for _ in range(6):
        await world.verifier._check_next()
    everyone = frozenset(server.peer_id for server in SERVERS)
    assert set(world.went_through) == {everyone}
    turns = [event["peer_id"] for event in world.events("canary")]
    assert {*turns[:3]} == {*turns[3:]} == everyone
    assert [report.num_broken for report in world.verifier._book.take()] == [2, 2, 2]


async def test_what_was_opened_is_judged_published_and_told_and_the_one_at_fault_is_named_once(world):
    false, other, last = SERVERS
    found = (result(false, opening="false"), result(false, opening="false"), result(other), result(last))
    world.finds = lambda peers: Findings(found, (1, 2, 3), "")
    await world.verifier._check_next()
    outcomes = [(each.peer_id, each.outcome, each.owner) for each in world.publisher.entered]
    failed, passed = Outcome.FAIL, Outcome.PASS
    assert outcomes == [
        *[(false.peer_id, failed, false.peer_id)] * 2, (other.peer_id, passed, ""), (last.peer_id, passed, "")
    ]  # fmt: skip
    assert world.publisher.num_published == 1
    assert world.err.getvalue().count("has failed an audit") == 1
    assert f"The server {false.peer_id} has failed an audit (it is false)." in world.err.getvalue()
    world.verifier._tell(world.verifier._book.take())
    assert {event["peer_id"]: event["fail"] for event in world.events("verified")} == {
        false.peer_id: 2, other.peer_id: 0, last.peer_id: 0
    }  # fmt: skip


async def test_who_does_not_open_is_named_without_a_judge_and_the_one_behind_it_is_not(world):
    before, behind, _ = SERVERS
    world.finds = lambda peers: Findings((result(behind, Outcome.FAIL, None, before.peer_id),), (), "")
    await world.verifier._check_next()
    assert f"The server {before.peer_id} has failed" in world.err.getvalue()
    assert behind.peer_id not in world.err.getvalue()


@pytest.mark.parametrize("shows_itself", [True, False])
async def test_what_one_opening_shows_is_claimed_and_what_only_a_pool_has_shown_is_not(world, shows_itself):
    measured = Measured(400_000, 500_000, 600_000, bytes(32))
    world.verifier._judge = lambda _: Verdict(Outcome.FAIL, "it is false", measured, shows_itself=shows_itself)
    world.finds = lambda peers: Findings((result(SERVERS[0], opening=opening_of((70, 60), 1)),), (), "")
    await world.verifier._check_next()
    assert [each.error_ppm for each in world.accused] == ([400_000] if shows_itself else [])


async def test_what_nobody_can_be_convinced_of_is_not_claimed_and_said(world):
    measured = Measured(400_000, 500_000, 600_000, bytes(32))
    world.verifier._judge = lambda _: Verdict(Outcome.FAIL, "it is false", measured, shows_itself=True)
    world.finds = lambda peers: Findings((result(SERVERS[0], opening=opening_of((64, 64, 20), 2, crop=64)),), (), "")
    await world.verifier._check_next()
    assert world.accused == []
    assert f"The server {SERVERS[0].peer_id} cannot be accused of it: " in world.err.getvalue()


async def test_a_model_with_a_gap_is_waited_for_and_that_is_said_once(world):
    world.swarm.announced[1] = announcement(SERVERS[1], start=3, end=4)
    for _ in range(2):
        await world.verifier._check_next()
    assert not world.went_through
    assert world.err.getvalue().count("have no server") == 1


async def test_canaries_go_without_weights_too_where_the_servers_offer_their_ends(world):
    for _ in range(20):
        await world.verifier._check_next()
    assert {*world.guises} == {Guise.WITH_ENDS}
    first, middle, last = world.swarm.announced
    world.swarm.announced = [replace(first, ends=EMBEDS), middle, replace(last, ends=HEADS)]
    for _ in range(40):
        await world.verifier._check_next()
    assert {*world.guises} == {*Guise}


async def test_the_texts_of_later_canaries_are_not_what_is_likeliest_everywhere(world):
    world.finds = lambda peers: Findings((), tuple(range(20)), "")
    world.swarm.announced[0] = replace(world.swarm.announced[0], ends=EMBEDS)
    world.swarm.announced[2] = replace(world.swarm.announced[2], ends=HEADS)
    world.verifier._texts = SimpleNamespace(next=lambda: None, keep=lambda text: kept.append(world.guises[-1]))
    kept = []
    for _ in range(40):
        await world.verifier._check_next()
    assert {*kept} == {Guise.WITH_ENDS, Guise.ASKS_LOGITS}


async def test_servers_that_take_no_sessions_are_not_checked(world):
    world.swarm.announced = [
        *world.swarm.announced,
        replace(announcement(Identity.ephemeral(), start=2, end=3), state=ServerState.PAUSED),
    ]
    for _ in range(8):
        await world.verifier._check_next()
    assert {event["peer_id"] for event in world.events("canary")} == {server.peer_id for server in SERVERS}


async def test_without_a_calibration_nobody_is_checked_the_mend_is_said_and_it_begins_when_there_is_one(world):
    world.verifier._current = current = Current()
    patrol = asyncio.create_task(world.verifier._patrol())
    try:
        await asyncio.sleep(0.05)
        assert not world.went_through
        assert world.err.getvalue().count("make one with `efedllm calibrate`") == 1
        current.use(calibration())
        async with asyncio.timeout(10):
            while not world.went_through:
                await asyncio.sleep(0.01)
    finally:
        patrol.cancel()
        await asyncio.gather(patrol, return_exceptions=True)


def test_a_model_without_a_calibration_is_taken(tmp_path):
    directory = tmp_path / "model"
    build("llama", TINY).save_pretrained(directory)
    reporter = Reporter(events_json=False, out=io.StringIO(), err=io.StringIO())
    _, current, judge, _ = _load(options(tmp_path, directory), reporter)
    assert current.calibration is None
    assert judge(None).outcome is Outcome.INCONCLUSIVE
