"""Servers are harmed in every way of the kit while clients generate: every answer is right, and nothing is left."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.bench.report import circumstances
from tests.churn_kit import Fleet, Links
from tests.forked import Forked
from tests.processes import children_of, is_running, run_command
from tests.soak.churn_client import NO_ROUTE
from tests.soak.events import HARMS, Event, plan_events
from tests.soak.test_soak import left_after_all
from tests.swarm.models import LLAMA, SPANS, save

SEED = 10
"""The first seed whose first two minutes show every harm."""
NUM_CLIENTS = 4
BEAT_S = 5.0
HUNG_S = 150.0
"""A client that says nothing for so long is hung: its own patience with a step is 120 s."""
START_S = 400.0
"""Four clients read the model and join at once, on a machine that may have other work."""
LEFT_S = 60.0
SLOW_BYTES_PER_S = 50_000.0
DELAY_S = 0.2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


class Client:
    """A running ``tests.soak.churn_client``."""

    def __init__(self, directory: Path, join: str, seed: int) -> None:
        self._process = Forked(["tests.soak.churn_client", str(directory), join, str(seed)], os.environ)
        self.lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.answers: list[dict[str, Any]] = []
        self._readers = [threading.Thread(target=reads) for reads in (self._read, self._read_errors)]
        self.errors = ""
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.lines.put(json.loads(line))

    def _read_errors(self) -> None:
        self.errors = self._process.stderr.read()

    def finish(self) -> int:
        """Let it end its last answer; return its exit code."""
        self._process.stdin.close()
        try:
            code = self._process.wait(HUNG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for reader in self._readers:
            reader.join()
        while not self.lines.empty():
            self.answers.append(self.lines.get())
        for pipe in (self._process.stdout, self._process.stderr):
            pipe.close()
        return code


class Soaked(NamedTuple):
    """A swarm whose servers all stand behind links that can be harmed."""

    fleet: Fleet
    peers: list[str]
    """Peer ids by the number of the server."""
    join: str
    directory: Path


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[Soaked]:
    directory = tmp_path / "model"
    save(directory, "llama", LLAMA, seed=7)
    with (
        Links() as links,
        links.bootstrap(tmp_path / "bootstrap") as (_, join),
        Fleet(directory, join, tmp_path / "fleet", "--num-threads", "1", proxied=links) as fleet,
    ):
        yield Soaked(fleet, fleet.start(*SPANS, *SPANS), join, directory)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(120, marks=pytest.mark.timeout(600)),
        pytest.param(1200, marks=[pytest.mark.full, pytest.mark.timeout(2400)]),
    ],
)
def test_answers_are_right_while_servers_are_harmed_in_every_way(
    soaked: Soaked, seconds: int, capsys: pytest.CaptureFixture[str]
):
    events = plan_events(SEED, int(seconds / BEAT_S), len(SPANS))
    clients = [Client(soaked.directory, soaked.join, SEED + number) for number in range(NUM_CLIENTS)]
    try:
        for client in clients:
            assert client.lines.get(timeout=START_S) == {"ready": True}
        act_out(soaked, events)
        mend_all(soaked, events)
    finally:
        codes = [client.finish() for client in clients]
    outcomes = Counter(answer["outcome"] for client in clients for answer in client.answers)
    answers = [answer for client in clients for answer in client.answers]
    left = [left_after_all(soaked.fleet.servers[peer_id], LEFT_S) for peer_id in soaked.peers]
    with capsys.disabled():
        print(f"\n{json.dumps(report(seconds, events, answers, outcomes, left))}")
    assert codes == [0] * NUM_CLIENTS, [client.errors for client in clients]
    assert set(outcomes) - {NO_ROUTE} == {"right"}
    assert outcomes[NO_ROUTE] == 0 or any(are_all_gone(events))
    assert sum(answer["repairs"] for answer in answers) > 0
    assert left == [(0, 0, 0)] * len(soaked.peers)
    assert [client.errors for client in clients if "Traceback" in client.errors] == []
    assert_nothing_runs_on(soaked)


def are_all_gone(events: list[Event]) -> Iterator[bool]:
    """Say, event by event, whether both servers of some span are harmed then."""
    harmed: set[int] = set()
    for event in events:
        (harmed.add if event.act in HARMS else harmed.discard)(event.server)
        yield any({span, span + len(SPANS)} <= harmed for span in range(len(SPANS)))


def report(
    seconds: int, events: list[Event], answers: list[dict[str, Any]], outcomes: Counter[str], left: list[Any]
) -> dict[str, Any]:
    """Return what a person wants to read of a run."""
    slowest = sorted(answer["s"] for answer in answers)[-3:]
    repairs = sum(answer["repairs"] for answer in answers)
    figures = {"seconds": seconds, "answers": len(answers), "outcomes": outcomes, "repairs": repairs}
    return {
        **circumstances("churn", SEED), **figures, "slowest_s": slowest, "left": left,
        "events": [str(event) for event in events],
    }  # fmt: skip


def act_out(soaked: Soaked, events: list[Event]) -> None:
    """Do what was planned, each thing at its beat, or as soon as the one before is done."""
    began_s = time.monotonic()
    for event in events:
        time.sleep(max(0.0, began_s + event.beat * BEAT_S - time.monotonic()))
        act(soaked, event.act, soaked.peers[event.server])
    time.sleep(max(0.0, began_s + len(events) * BEAT_S - time.monotonic()))


def act(soaked: Soaked, what: str, peer_id: str) -> None:
    """Do one thing to one server."""
    fleet = soaked.fleet
    match what:
        case "slow":
            fleet.slow(peer_id, SLOW_BYTES_PER_S)
        case "delay":
            fleet.delay(peer_id, DELAY_S)
        case "drain":
            run_command(["drain", "--no-wait"], fleet.servers[peer_id].home)
        case _:
            getattr(fleet, what)(peer_id)


def mend_all(soaked: Soaked, events: list[Event]) -> None:
    """Undo what is still wrong, so that every answer can end."""
    last = {event.server: event.act for event in events}
    for number, what in last.items():
        peer_id = soaked.peers[number]
        soaked.fleet.thaw(peer_id)
        soaked.fleet.heal(peer_id)
        if what in ("kill", "kill_daemon", "drain"):
            soaked.fleet.restart(peer_id)


def assert_nothing_runs_on(soaked: Soaked) -> None:
    """End the servers; no process of theirs is left."""
    servers = list(soaked.fleet.servers.values())
    tree = [pid for server in servers for pid in (server.pid, *children_of(server.pid))]
    for server in servers:
        server.signal(signal.SIGTERM)
    assert [server.wait() for server in servers] == [0] * len(servers)
    assert [pid for pid in tree if is_running(pid)] == []
