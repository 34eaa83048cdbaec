"""Links between servers go silent, slow, wrong and apart in the middle of an answer; the answer is the same.

All nodes stand behind proxies, the bootstrap too; the client dials them and is dialled by nobody.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.errors import NotAdmitted
from node import AutoDistributedModelForCausalLM
from node.client.chain import StageFailed
from node.run.exit_codes import exit_code
from node.wire import PROTOCOL
from tests.churn.sockets import connections_of
from tests.churn_kit import AtTokens, Fleet, Links, other_version
from tests.swarm.models import LLAMA, SPANS, save

NEW_TOKENS = 16
LOST_S = 8.0
"""A pause in which a stage is found lost, replaced and caught up with, on a machine with other work."""

SHUNNED_S = 7.0
"""For so long p2pd does not dial a peer that it could not reach once or twice, though it is back."""

REACHED_AGAIN_S = 20.0
"""Within this a healed server is reached by its neighbours again."""


class Swarm:
    """Three stages, one more server of the middle one, and a client."""

    def __init__(self, fleet: Fleet, links: Links, join: str, local: Any, remote: Any) -> None:
        self.fleet, self.links, self.join, self.local, self.remote = fleet, links, join, local, remote
        ids = torch.randint(3, 100, (1, 64), generator=torch.Generator().manual_seed(1))
        self._asked = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS,
            "do_sample": False,
        }
        self.expected = local.generate(**self._asked)
        self.repairs: list[Any] = []
        remote._connector.on_repaired = self.repairs.append

    def middle(self) -> str:
        """Return the peer that runs the middle of the running answer."""
        (chain,) = self.remote._connector._chains
        return str(chain.route.stages[1].peer_id)

    def middles(self) -> set[str]:
        return {peer_id for peer_id, span in self.fleet._spans.items() if span == SPANS[1]}

    def answer(self, acts: dict[int, Any] | None = None) -> tuple[float, str]:
        """Answer while things happen; return the longest pause and the peer that ran the middle in the end."""
        ends: list[str] = []
        streamer = AtTokens({**(acts or {}), NEW_TOKENS - 1: lambda: ends.append(self.middle())})
        assert torch.equal(self.remote.generate(**self._asked, streamer=streamer), self.expected)
        return max(streamer.pauses_s()), ends[0]

    def answer_when_it_can(self) -> tuple[float, str]:
        """Answer as soon as a session opens: for some seconds p2pd does not dial whoever could not be reached."""
        deadline_s = time.monotonic() + REACHED_AGAIN_S
        while True:
            try:
                return self.answer()
            except StageFailed:
                assert time.monotonic() < deadline_s
                time.sleep(0.5)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    home = tmp_path_factory.mktemp("faults")
    local = save(home / "model", "llama", LLAMA, seed=7)
    with (
        Links() as links,
        links.bootstrap(home / "bootstrap") as (_, join),
        Fleet(home / "model", join, home, "--num-threads", "1", proxied=links) as fleet,
    ):
        fleet.start(*SPANS, SPANS[1])
        with AutoDistributedModelForCausalLM.from_pretrained(str(home / "model"), join=join) as remote:
            yield Swarm(fleet, links, join, local, remote)


@pytest.fixture(autouse=True)
def healed(swarm: Swarm) -> Iterator[None]:
    """Let every test begin with good links, and a client that knows nothing of the past."""
    swarm.repairs.clear()
    swarm.remote._connector.forget()
    yield
    swarm.fleet.heal(*swarm.fleet.servers)


def test_nobody_connects_but_through_proxies(swarm: Swarm):
    swarm.answer()
    proxies = {link.proxy.port for link in swarm.links.links}
    listening = {link.listen_port for link in swarm.links.links}
    ours = {end.port for end in connections_of(os.getpid())}
    for link in swarm.links.links:
        for end in connections_of(link.pid):
            assert end.other_port in proxies or end.other_port in ours, (link.name, end)
            assert end.other_port not in listening, (link.name, end)
    client = connections_of(swarm.remote._connector._swarm._daemon.pid)
    assert client
    assert {end.other_port for end in client} <= proxies


def harm(swarm: Swarm, what: str, harmed: list[str]) -> None:
    harmed.append(swarm.middle())
    match what:
        case "half-open":
            swarm.fleet.drop(harmed[0])
        case "corrupted":
            swarm.fleet.corrupt(harmed[0])
        case "partitioned":
            swarm.fleet.partition(harmed[0])
        case "silently partitioned":
            swarm.fleet.partition(harmed[0], is_silent=True)


@pytest.mark.parametrize("what", ["half-open", "corrupted", "partitioned", "silently partitioned"])
def test_an_answer_survives_a_broken_link_and_the_healed_server_serves_again(swarm: Swarm, what: str):
    harmed: list[str] = []
    acts = {6: lambda: harm(swarm, what, harmed), 11: lambda: swarm.fleet.heal(harmed[0])}
    pause_s, _ = swarm.answer(acts)
    assert pause_s < LOST_S
    assert swarm.repairs
    (spare,) = swarm.middles() - {harmed[0]}
    swarm.fleet.partition(spare)
    pause_s, middle = swarm.answer_when_it_can()
    assert middle == harmed[0]
    assert pause_s < LOST_S
    swarm.fleet.heal(spare)
    time.sleep(SHUNNED_S)  # So that the next test does not begin with what this one has left.


def test_an_answer_comes_slower_over_a_slow_link_and_is_the_same(swarm: Swarm):
    quick_s, _ = swarm.answer()
    pause_s, _ = swarm.answer({6: lambda: swarm.fleet.slow(swarm.middle(), 8_000)})
    assert quick_s < pause_s < LOST_S


def test_nodes_of_another_version_are_refused_by_name(swarm: Swarm, tmp_path: Path):
    commands = (
        ["serve", swarm.fleet._model, "--join", swarm.join, "--blocks", "0:4", "--device", "cpu"],
        ["status", "--join", swarm.join],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *other_version(hello=2), *command],
            env={**os.environ, "EFEDLLM_HOME": str(tmp_path / command[0]), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90.0,
            check=False,
        )
        assert done.returncode == exit_code(NotAdmitted()), done.stderr
        assert "speaks version 1 of the protocol and this program 2: update the older one" in done.stderr
    swarm.answer_when_it_can()


def test_a_server_of_another_session_protocol_is_passed_over(swarm: Swarm):
    (foreign,) = swarm.fleet.start((0, 4), program=other_version(session=PROTOCOL[:-1] + "9"))
    swarm.remote._connector.forget()
    directory = swarm.remote._connector.directory()
    assert foreign in {server.owner for server in directory.servers}  # A route through it alone would be the shortest.
    swarm.answer_when_it_can()
    swarm.fleet.servers.pop(foreign).stop()
