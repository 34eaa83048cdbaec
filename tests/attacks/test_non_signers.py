"""Attacks 18 and 19: a client, and servers, that do not sign as they have agreed to; real processes on loopback."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.receipts.ledger import Ledger
from node import AutoDistributedModelForCausalLM
from node.agreement.exposure import CHECKPOINT_TIMEOUT_S
from node.client import network
from node.client.contract import SessionContract
from node.errors import Refused
from tests.attacks.evil_server import evil_server
from tests.churn_kit import AtTokens, Fleet
from tests.processes import bootstrap
from tests.swarm.models import LLAMA, save

SPANS = ((0, 2), (2, 4))
NEW_TOKENS = 100


class Scene:
    """Two honest stages, and whoever else a test starts."""

    def __init__(self, directory: Path, join: str, local: Any, fleet: Fleet) -> None:
        self.directory, self.join, self.local, self.fleet = directory, join, local, fleet

    def client(self, **options: Any) -> Any:
        """Connect another client."""
        return AutoDistributedModelForCausalLM.from_pretrained(str(self.directory), join=self.join, **options)

    def start(self, span: tuple[int, int], behaviour: str) -> str:
        """Start an evil server."""
        (peer_id,) = self.fleet.start(span, program=evil_server(behaviour))
        return peer_id

    def ledger(self, peer_id: str) -> Ledger:
        """Look into the ledger of a server."""
        return Ledger.open_to_read(self.fleet.servers[peer_id].home / "ledger.sqlite")


def prompt(tokens: int = 8) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def settings(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("model") / "signed"
    local = save(directory, "llama", LLAMA, seed=9)
    with (
        pytest.MonkeyPatch.context() as environment,
        bootstrap(tmp_path_factory.mktemp("bootstrap")) as (_, join),
        Fleet(directory, join, tmp_path_factory.mktemp("fleet"), "--num-threads", "1") as fleet,
    ):
        environment.setenv("EFEDLLM_HOME", str(home))
        fleet.start(*SPANS)
        yield Scene(directory, join, local, fleet)


@contextlib.contextmanager
def led_to(scene: Scene, remote: Any, place: int, behaviour: str) -> Iterator[str]:
    """Start an evil server and let the client's next session go through it; afterwards there are others again."""
    evil = scene.start(SPANS[place], behaviour)
    remote._connector.forget()
    later = Refused("full", "Later.", retryable=True, retry_after_s=30.0)
    for peer, span in scene.fleet._spans.items():
        if span == SPANS[place] and peer != evil:
            remote._connector._loop.call_soon(lambda peer=peer: remote._connector.failed(peer, later))
    try:
        yield evil
    finally:
        scene.fleet._spans.pop(evil)
        scene.fleet.servers.pop(evil).stop()


@pytest.fixture(scope="module")
def remote(scene: Scene) -> Iterator[Any]:
    """A client that both honest servers know: it has signed for more than 256 tokens."""
    with scene.client() as remote:
        for _ in range(2):
            remote.generate(**prompt(), **settings(150))
        yield remote


@pytest.mark.parametrize(
    ("behaviour", "place"),
    [("silent", 0), ("silent", 1), ("forges", 0), ("inflates", 1), ("mishashes", 0), ("mishashes", 1), ("stalls", 0)],
)
def test_an_answer_goes_on_elsewhere_when_a_server_does_not_sign_as_it_should(scene, remote, behaviour, place):
    expected = scene.local.generate(**prompt(), **settings(NEW_TOKENS))
    repairs, rechecked, seen = [], [], []
    remote._connector.on_repaired, remote._connector.on_rechecked = repairs.append, rechecked.append

    def look() -> None:
        seen.extend(stage.peer_id for stage in running(remote).route.stages)
        remote._connector.forget()

    streamer = AtTokens({1: look} | ({80: outlast_patience} if behaviour == "silent" else {}))
    with led_to(scene, remote, place, behaviour) as evil:
        tokens = remote.generate(**prompt(), **settings(NEW_TOKENS), streamer=streamer)
        wait_until(lambda: rechecked)
    assert seen[place] == evil
    assert torch.equal(tokens, expected)
    (repaired,) = repairs
    assert evil in repaired.lost[0]
    (checked,) = rechecked
    assert checked.peer_id == evil
    assert checked.num_positions > 0
    assert (checked.num_different, checked.why_not) == (0, ""), "it gave what it should, and signed for something else"


@pytest.mark.parametrize(("behaviour", "place"), [("lies", 0), ("lies", 1), ("dawdles", 0), ("dawdles", 1)])
def test_an_answer_that_a_server_falsifies_and_does_not_sign_for_is_run_again_and_the_user_told(
    scene, remote, behaviour, place, caplog
):
    expected = scene.local.generate(**prompt(), **settings(NEW_TOKENS))
    connector = remote._connector
    streamer = AtTokens({1: connector.forget, 80: outlast_patience})
    connector.on_rechecked = network._warn_of_rechecked
    with led_to(scene, remote, place, behaviour) as evil:
        tokens = remote.generate(**prompt(), **settings(NEW_TOKENS), streamer=streamer)
        wait_until(lambda: "has not signed" in caplog.text)
    assert not torch.equal(tokens, expected), "or nothing was false"
    assert len(streamer.times_s) == NEW_TOKENS, "what has been streamed stands, and the answer goes on"
    (said,) = [record.getMessage() for record in caplog.records if "has not signed" in record.getMessage()]
    assert evil in said
    (since,) = map(int, re.findall(r"do not trust that answer from position (\d+) on", said))
    assert since == 8 if behaviour == "lies" else 8 <= since < 16, "but for what it has signed for"


def outlast_patience() -> None:
    """Think, between two tokens, for longer than a signature may be overdue."""
    time.sleep(CHECKPOINT_TIMEOUT_S + 0.1)


def running(remote: Any) -> Any:
    """Return the session that is open and is not being closed."""
    (chain,) = (chain for chain in remote._connector._chains if chain._failure is None)
    return chain


def wait_until(is_so: Callable[[], object]) -> None:
    until_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def served_unsigned(scene: Scene, consumer: str) -> list[int]:
    """Return what each honest server has noted as served to a consumer and not signed for."""
    amounts = []
    for peer in list(scene.fleet.servers)[: len(SPANS)]:
        with scene.ledger(peer) as ledger:
            amounts += [end.amount for end in ledger.unsigned(peer) if end.peer == consumer]
    return amounts


@pytest.mark.parametrize(("num_signed", "most"), [(0, 16), (300, 64)])
def test_a_client_that_does_not_sign_is_served_so_many_tokens_and_told_why_and_others_notice_nothing(
    scene, remote, num_signed, most, monkeypatch
):
    expected = scene.local.generate(**prompt(), **settings(NEW_TOKENS))
    genuine, genuine_overdue, signing = SessionContract.checkpoint, SessionContract.overdue, list[bool]()
    with scene.client() as evil:
        dealings = evil._connector._dealings

        def checkpoint(self: SessionContract, place: int, body: bytes) -> Any:
            return genuine(self, place, body) if self._dealings is not dealings or signing else (None, None)

        def overdue(self: SessionContract) -> list[int]:
            return [] if self._dealings is dealings else genuine_overdue(self)

        monkeypatch.setattr(SessionContract, "checkpoint", checkpoint)
        monkeypatch.setattr(SessionContract, "overdue", overdue)
        if num_signed:
            signing.append(True)
            evil.generate(**prompt(4), **settings(num_signed))
            wait_until(lambda: not evil._connector._chains)
            signing.clear()
        streamer = AtTokens({})
        with ThreadPoolExecutor(1) as others:
            other = others.submit(lambda: remote.generate(**prompt(), **settings(NEW_TOKENS)))
            with pytest.raises(Refused, match=r"What was done is not signed for; sign checkpoints as they come\."):
                evil.generate(**prompt(4), **settings(200), streamer=alone(evil, streamer))
            assert torch.equal(other.result(), expected)
        consumer = dealings._identity.peer_id
        wait_until(lambda: served_unsigned(scene, consumer))
    assert most // 2 < len(streamer.times_s) <= most
    assert 0 < max(served_unsigned(scene, consumer)) <= most


def alone(evil: Any, streamer: AtTokens) -> AtTokens:
    """Let the session not look for other servers: it does not pay those either."""

    def look_for_nobody() -> None:
        running(evil)._planner = None

    streamer._acts[1] = look_for_nobody
    return streamer
