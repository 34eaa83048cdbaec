"""Nodes behind address translation: reached over the bootstrap's relay with no option set, directly where they can be.

Bytes that the bootstrap's machine carries tell which way was taken, beside the address at which a peer is seen.
"""

import contextlib
import functools
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.limits.namespaces import SWITCH, Homes, Machine, can_translate_addresses, homes
from tests.limits.small_swarm import NUM_BLOCKS, save_model
from tests.limits.test_two_machines import PROMPT, expected_text
from tests.processes import NodeProcess, run_command

MANY_BYTES = 2**21
PUBLIC = "/ip4/44.0.0.1/tcp/4001"
FEW_BYTES = 2**17
"""What announcements, hellos and keeping connections alive may take meanwhile."""

pytestmark = pytest.mark.skipif(
    not can_translate_addresses(), reason="network namespaces that translate addresses cannot be made here"
)


class EchoPeer:
    """An ``echo_peer`` on one machine; starting several before asking any lets them start side by side."""

    def __init__(self, machine: Machine, **options: Any) -> None:
        with machine.inside():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.limits.echo_peer", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    @functools.cached_property
    def started(self) -> Any:
        return self._read()

    def ask(self, name: str, *arguments: Any) -> Any:
        assert self.started
        assert self._process.stdin is not None
        print(json.dumps([name, *arguments]), file=self._process.stdin, flush=True)
        return self._read()

    def call(self, other: Self, *, hold: bool = False) -> Any:
        answer = self.ask("call", other.started["id"], other.started["addresses"], MANY_BYTES, hold)
        assert answer.get("came") == MANY_BYTES, answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the end of its input ends it
        self._process.wait(20)
        self._process.stdout.close()


def is_relayed(answer: Any) -> bool:
    return all(address.startswith("/ip4/127.0.0.1/") for address in answer["seen"])


def print_figures(way: str, caller: EchoPeer, called: EchoPeer, answer: Any) -> None:
    """Say, under ``pytest -s``, what docs/benchmarks.md tells of."""
    round_trip_s = caller.ask("round_trip_s", called.started["id"])
    print(f"{way}: joined in {called.started['join_s']:.2f} s, first call dialled in {answer['dial_s']:.3f} s,")
    print(f"{MANY_BYTES} bytes both ways in {answer['bytes_s']:.3f} s, 100 bytes in {round_trip_s * 1e3:.2f} ms")


@pytest.fixture(scope="module")
def places() -> Iterator[Homes]:
    with homes(2, 1) as made:
        yield made


@contextlib.contextmanager
def no_route(machine: Machine, to: Machine) -> Iterator[None]:
    machine.ip("route", "add", "unreachable", f"{to.address}/32")
    try:
        yield
    finally:
        machine.ip("route", "del", "unreachable", f"{to.address}/32")


@dataclass(frozen=True)
class Peers:
    """Members of one private swarm."""

    in_public: EchoPeer
    """Listens in the internet."""
    at_home: EchoPeer
    """Listens to its neighbours."""
    shut_in: EchoPeer
    """In the other home, on loopback."""
    join: dict[str, Any]
    """The options with which others join them."""


@pytest.fixture(scope="module")
def peers(places: Homes) -> Iterator[Peers]:
    (near, _), (far,) = places.machines
    options = {"secret": secrets.token_hex(32)}
    with EchoPeer(places.internet, listen=[f"/ip4/{places.internet.address}/tcp/0"], carry=True, **options) as relay:
        join = {"join": relay.started["addresses"], **options}
        with (
            EchoPeer(places.internet, listen=[PUBLIC], **join) as in_public,
            EchoPeer(near, listen=["/ip4/0.0.0.0/tcp/0"], **join) as at_home,
            EchoPeer(far, **join) as shut_in,
        ):
            yield Peers(in_public, at_home, shut_in, join)


def test_members_in_two_homes_call_each_other_over_the_relay_of_a_private_swarm(places: Homes, peers: Peers):
    for caller, called in ((peers.at_home, peers.shut_in), (peers.shut_in, peers.at_home)):
        before = places.internet.bytes_carried(SWITCH)
        answer = caller.call(called)
        assert is_relayed(answer)
        assert places.internet.bytes_carried(SWITCH) - before > 4 * MANY_BYTES
        print_figures("relayed", caller, called, answer)


def test_who_can_be_dialled_from_the_internet_takes_no_relay(peers: Peers):
    assert [peer.ask("num_relays") for peer in (peers.in_public, peers.at_home, peers.shut_in)] == [0, 1, 1]
    assert peers.shut_in.call(peers.in_public)["seen"] == [PUBLIC]


def test_a_circuit_gives_way_to_a_direct_path_that_has_come_up_and_no_stream_is_cut(places: Homes, peers: Peers):
    (near, neighbour), _ = places.machines
    with contextlib.ExitStack() as exits:
        with no_route(neighbour, near):
            beside = exits.enter_context(EchoPeer(neighbour, client=True, **peers.join))
            assert is_relayed(beside.call(peers.at_home))
            beside.ask("prefer_direct")
            assert is_relayed(beside.call(peers.at_home, hold=True))
        beside.ask("prefer_direct")
        assert is_relayed(beside.call(peers.at_home))
        beside.ask("release")
        beside.ask("prefer_direct")
        before = places.internet.bytes_carried(SWITCH)
        answer = beside.call(peers.at_home)
        assert all(address.startswith(f"/ip4/{near.address}/") for address in answer["seen"])
        assert places.internet.bytes_carried(SWITCH) - before < FEW_BYTES
        print_figures("direct", beside, peers.at_home, answer)


def test_servers_in_two_homes_answer_a_client_at_home(tmp_path: Path, places: Homes):
    (near, neighbour), (far,) = places.machines
    model = tmp_path / "model"
    local = save_model(model)
    started: list[NodeProcess] = []
    try:
        with places.internet.inside():
            listen = f"/ip4/{places.internet.address}/tcp/31337"
            started.append(NodeProcess(["bootstrap", "--listen", listen], tmp_path / "bootstrap", is_forked=False))
        join = started[0].ready()["join"]
        spans = [(near, "0:2"), (far, "2:4"), (neighbour, f"4:{NUM_BLOCKS}")]  # the relay carries pushes both ways
        began_s = time.monotonic()
        for number, (machine, blocks) in enumerate(spans):
            serve = ["serve", str(model), "--join", join, "--device", "cpu", "--num-threads", "1", "--blocks", blocks]
            with machine.inside():
                started.append(NodeProcess(serve, tmp_path / f"server{number}", is_forked=False))
        for process in started[1:]:
            process.ready()
        print(f"servers ready after {time.monotonic() - began_s:.1f} s")
        ask = ["generate", str(model), "--join", join, "--prompt", PROMPT, "--greedy", "--max-new-tokens", "8"]
        before = places.internet.bytes_carried(SWITCH)
        with far.inside():
            answer = run_command(ask, tmp_path / "client")
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.rstrip("\n") == expected_text(model, local).rstrip("\n")
        assert places.internet.bytes_carried(SWITCH) > before
        print(answer.stderr)
    finally:
        for process in reversed(started):
            process.stop()
    for process in started[1:]:
        assert any("through the relay" in line for line in process.errors), process.errors
        assert any(listen in line and "p2p-circuit" in line for line in process.errors)
