"""Servers and clients that are killed in the middle of sessions contradict nobody, and lose a checkpoint at most."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dht.receipts.ledger import Ledger
from dht.work import Receipt, WorkKind
from tests.processes import bootstrap, run_command
from tests.swarm import insisting, journal
from tests.swarm.models import LLAMA, save

SPANS = ((0, 2), (2, 4))
LONGEST_S = 1.5
"""About what one session takes."""


PREPARED = multiprocessing.get_context("forkserver")
PREPARED.set_forkserver_preload(
    [
        "tests.swarm.journal",
        "tests.swarm.insisting",
        "node.cli",
        "node.run.server",
        "node.client.distributed_model",
        "transformers.models.llama.modeling_llama",
    ]
)


class Life:
    """A server or a client with one home over all its lives.

    Args:
        home: where it keeps what it keeps.
        arguments: what it does.
    """

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home, self._arguments = home, list(arguments)
        self._process: Any = None
        self._num_events = 0

    def start(self) -> None:
        self._process = PREPARED.Process(target=journal.run, args=(self.home, self._arguments), daemon=True)
        self._process.start()

    def ready(self) -> dict[str, Any]:
        """Wait for the next ``ready`` event."""
        until_s = time.monotonic() + 120
        while True:
            lines = self._lines()
            new = [json.loads(line) for line in lines[self._num_events :]]
            self._num_events = len(lines)
            for event in new:
                if event["event"] == "ready":
                    return event
            said = (self.home / "errors").read_text() if (self.home / "errors").exists() else ""
            assert self._process.is_alive(), said
            assert time.monotonic() < until_s, said
            time.sleep(0.02)

    def _lines(self) -> list[str]:
        path = self.home / "events"
        return path.read_text().splitlines() if path.exists() else []

    def works(self) -> None:
        """Wait until something more is ready."""
        self._num_events = len(self._lines())
        self.ready()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        self._process.terminate()
        self._process.join(60)
        assert self._process.exitcode == 0, (self.home / "errors").read_text()


class Books:
    """What the journals, the ledgers and the DHT say after a run."""

    def __init__(self, client: Path, servers: dict[str, Path], published: list[dict[str, Any]]) -> None:
        self.client, self.servers = client, servers
        self.journals = {peer: [*journal.read(home / "journal")] for peer, home in servers.items()}
        self.published: dict[str, Counter[WorkKind]] = defaultdict(Counter)
        for entry in published:
            self.published[entry["provider"]][WorkKind[entry["kind"].upper()]] += entry["amount"]

    def served(self, peer: str) -> Counter[WorkKind]:
        """Return the tokens that a server has served."""
        sums: Counter[WorkKind] = Counter()
        for entry in self.journals[peer]:
            if "served" in entry:
                sums[WorkKind(entry["kind"])] += entry["served"]
        return sums

    def bodies(self) -> list[Receipt]:
        """Return whatever was signed by either side."""
        lines = [
            *journal.read(self.client / "journal"),
            *(entry for lines in self.journals.values() for entry in lines),
        ]
        return [Receipt.from_body(bytes.fromhex(body)) for line in lines for body in line.get("signed", ())]

    def lost(self, peer: str) -> Counter[WorkKind]:
        """Return how many receipts a server has signed for which nothing came back."""
        held: dict[Any, int] = {}
        with Ledger.open_to_read(self.servers[peer] / "ledger.sqlite") as ledger:
            for signed in ledger.newest(peer):
                held[signed.record.slot] = signed.record.seq
        made = {(body.slot, body.seq) for body in self.bodies() if body.provider == peer}
        return Counter(slot.work_kind for slot, seq in made if seq > held.get(slot, 0))

    def checkpoints(self, peer: str, kind: WorkKind) -> list[int]:
        """Return the tokens of a kind that each checkpoint of a server has added, and what none reached."""
        added = []
        since = 0
        for entry in self.journals[peer]:
            if "served" in entry:
                since += entry["served"] * (entry["kind"] == kind)
            else:
                added.append(since)
                since = 0
        return sorted([*added, since], reverse=True)

    def may_lack(self, peer: str, kind: WorkKind, num_kills: int) -> int:
        """Return the tokens that may lack a signature: for each kill a checkpoint, or what none had reached."""
        return sum(self.checkpoints(peer, kind)[: num_kills + self.lost(peer)[kind]])


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Callable[..., Life]]:
    """Begin lives that end with the test."""
    begun: list[Life] = []

    def begin(name: str, *arguments: str) -> Life:
        begun.append(Life(tmp_path / name, *arguments))
        begun[-1].start()
        return begun[-1]

    yield begin
    for life in begun:
        life.kill()


@pytest.mark.parametrize("num_kills", [6, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(3600)])])
def test_a_kill_at_any_point_contradicts_nobody_and_loses_a_checkpoint_at_most(num_kills, tmp_path, lives, capsys):
    chance, began_s = random.Random(num_kills), time.monotonic()
    directory = tmp_path / "model"
    save(directory, "llama", LLAMA, seed=3)
    killed: Counter[str] = Counter()
    with bootstrap(tmp_path / "bootstrap", "--epoch", "180") as (_, join):
        servers = {}
        for start, end in SPANS:
            where = ("--blocks", f"{start}:{end}", "--device", "cpu")
            serve = ("serve", str(directory), "--join", join, *where, "--events", "json")
            life = lives(f"server-{start}", *serve)
            servers[life.ready()["peer_id"]] = life
        peers = list(servers)
        client = lives("client", "client", str(directory), join)
        for at in range(num_kills):
            client.works()
            time.sleep(chance.uniform(0, LONGEST_S))
            victim = ("client", *peers)[at % 3]
            killed[victim] += 1
            life = servers.get(victim, client)
            life.kill()
            life.start()
            if victim != "client":
                assert life.ready()["peer_id"] == victim
        client.works()
        client.end()
        for life in servers.values():
            life.end()
        asked = [word for peer in peers for word in ("--provider", peer)]
        said = run_command(["receipts", "--join", join, "--json", *asked], tmp_path / "reader")
        assert said.returncode == 0, said.stderr
    homes = {peer: life.home for peer, life in servers.items()}
    books = Books(client.home, homes, [json.loads(line) for line in said.stdout.splitlines()])
    figures = {"kills": num_kills, "seconds": round(time.monotonic() - began_s), "bodies": len(books.bodies())}
    figures["clients"] = len({body.consumer for body in books.bodies()})
    for place, peer in enumerate(peers):
        figures[f"server {place}"] = {
            "killed": killed[peer],
            "client killed": killed["client"],
            "served": {kind.name: tokens for kind, tokens in books.served(peer).items()},
            "published": {kind.name: tokens for kind, tokens in books.published[peer].items()},
            "may lack": {
                kind.name: books.may_lack(peer, kind, killed[peer] + killed["client"]) for kind in books.served(peer)
            },
            "receipts lost": {kind.name: num for kind, num in books.lost(peer).items()},
        }
    with capsys.disabled():
        print(f"\n{json.dumps(figures)}")
    _check_ledgers(books)
    _check_signatures(books)
    for peer in peers:
        num = killed[peer] + killed["client"]
        for kind, tokens in books.served(peer).items():
            published = books.published[peer][kind]
            least = tokens - books.may_lack(peer, kind, num)
            assert 0 < least <= published <= tokens, (peer, kind)
            assert books.lost(peer)[kind] <= num, (peer, kind)


def test_a_consumer_that_insists_on_its_lane_after_each_kill_gets_no_number_signed_twice(tmp_path):
    num_lives = 4  # and so three starts after a kill
    for life in range(num_lives):
        process = PREPARED.Process(target=insisting.live, args=(tmp_path, 3 + life), daemon=True)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, "or it was refused, and never signed"
    lines = journal.read(tmp_path / insisting.JOURNAL)
    bodies = [Receipt.from_body(bytes.fromhex(body)) for line in lines for body in line["signed"]]
    assert [body.amount for body in bodies] == [3 + life for life in range(num_lives)], "each says something else"
    assert len({body.slot for body in bodies}) == 1, "of the same place"
    numbers = [body.seq for body in bodies]
    assert sorted(set(numbers)) == numbers


def _check_ledgers(books: Books) -> None:
    for home in (books.client, *books.servers.values()):
        with Ledger.open(home / "ledger.sqlite") as ledger:
            assert ledger.notices == []
            num, findings = ledger.verify()
            assert num > 0
            assert findings == []


def _check_signatures(books: Books) -> None:
    by_place: dict[Any, set[bytes]] = defaultdict(set)
    for body in books.bodies():
        by_place[body.slot, body.seq].add(body.to_body())
    assert {len(bodies) for bodies in by_place.values()} == {1}, "or somebody has signed two bodies with one number"
