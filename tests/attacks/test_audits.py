"""Servers that do not open what they signed for, open something else, or signed for something else than they computed.

Real processes on loopback. Each is found and named, and nobody else is; what a client may have opened is bounded.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.records import Envelope
from node import AutoDistributedModelForCausalLM
from node.client.audit_book import AuditResult, Outcome, Verdict
from node.client.audit_opening import Opening
from node.client.reveal_call import fetch
from node.errors import Refused
from node.merkle import root_of
from node.model.checkpoint import Checkpoint
from node.model.span import build_span
from node.model.tensors import from_payload
from node.step_log import StepLog
from node.wire import MAX_REVEALED_SHARE, MAX_REVEALS, Reveal
from tests.attacks.evil_server import evil_server
from tests.churn_kit import Fleet
from tests.families import NUM_BLOCKS
from tests.processes import bootstrap
from tests.swarm.models import LLAMA, SPANS, save

PROMPT, NEW_TOKENS = 70, 60
CHUNKS = 3
"""Of 129 positions: the last token is not sent."""
TOLERANCE = 1e-3


class Rerun:
    """Runs a span again in this process, in float32, as one prefill."""

    def __init__(self, directory: Path) -> None:
        checkpoint, dtype = Checkpoint.open(str(directory)), torch.float32
        tensors = checkpoint.load_span(0, NUM_BLOCKS, dtype=dtype)
        cpu = torch.device("cpu")
        self._whole = build_span(checkpoint.config, tensors, 0, NUM_BLOCKS, dtype=dtype, device=cpu)
        self.openings: list[Opening] = []

    def __call__(self, opening: Opening) -> Verdict:
        """Judge hidden states; ends of a client without weights are taken at their word here."""
        self.openings.append(opening)
        if opening.inputs.codec == "ids" or opening.outputs[0].codec in ("ids", "logits"):
            return Verdict(Outcome.PASS)
        span = self._whole.view(opening.stage.start, opening.stage.end)
        inputs = hidden(opening.inputs)
        reference = span.forward(inputs, span.new_cache(opening.end, inputs.shape[0]), None)[:, opening.first :]
        given = torch.cat([hidden(part) for part in opening.outputs], dim=1)
        error = float((given - reference).norm() / (reference - inputs[:, opening.first :]).norm())
        return Verdict(Outcome.PASS if error < TOLERANCE else Outcome.FAIL, f"off by {error:.1e}")


def hidden(given: Any) -> torch.Tensor:
    cpu = torch.device("cpu")
    return from_payload(bytearray(given.payload), given.shape, given.codec, dtype=torch.float32, device=cpu)


class Scene:
    """Three honest stages, and one evil server of the middle blocks."""

    def __init__(self, directory: Path, join: str, local: Any, fleet: Fleet, honest: list[str], evil: str) -> None:
        self.directory, self.join, self.local = directory, join, local
        self.fleet, self.honest, self.evil = fleet, honest, evil
        self.judge = Rerun(directory)

    def behave(self, name: str) -> None:
        (self.fleet.servers[self.evil].home / "behaviour").write_text(name)

    @contextlib.contextmanager
    def client(self, *, evil: bool = False, **options: Any) -> Iterator[tuple[Any, list[AuditResult]]]:
        """Connect a client whose sessions go through the evil server, or the honest ones; yield its audits, too."""
        results: list[AuditResult] = []
        settings = {"audit_rate": 1.0, "judge": self.judge, "only_peers": None if evil else self.honest} | options
        with AutoDistributedModelForCausalLM.from_pretrained(str(self.directory), join=self.join, **settings) as remote:
            remote.on_audited(results.append)
            if evil:
                later = Refused("full", "Later.", retryable=True, retry_after_s=30.0)
                remote._connector._loop.call_soon(lambda: remote._connector.failed(self.honest[1], later))
            yield remote, results


def ask(
    remote: Any, new_tokens: int = NEW_TOKENS, input_ids: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    ids = torch.randint(3, 100, (1, PROMPT), generator=torch.Generator().manual_seed(7))
    ids = ids if input_ids is None else input_ids
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, **options}
    return remote.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)


def wait_until(is_so: Callable[[], object], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until_s
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("model") / "audited"
    local = save(directory, "llama", LLAMA, seed=11)
    with (
        pytest.MonkeyPatch.context() as environment,
        bootstrap(tmp_path_factory.mktemp("bootstrap")) as (_, join),
        Fleet(directory, join, tmp_path_factory.mktemp("fleet"), "--num-threads", "1") as fleet,
    ):
        environment.setenv("EFEDLLM_HOME", str(home))
        honest = fleet.start(*SPANS)
        (evil,) = fleet.start(SPANS[1], program=evil_server("audited"))
        yield Scene(directory, join, local, fleet, honest, evil)


def test_every_chunk_of_honest_servers_is_opened_as_it_was_signed_and_comes_out_again(scene):
    scene.judge.openings.clear()
    with scene.client() as (remote, results):
        tokens = ask(remote)
        wait_until(lambda: len(results) == CHUNKS * len(SPANS))
    assert torch.equal(tokens, ask(scene.local))
    assert {(result.outcome, result.owner) for result in results} == {(Outcome.PASS, "")}
    assert {(result.peer_id, result.index) for result in results} == {
        (peer, index) for peer in scene.honest for index in range(CHUNKS)
    }
    for opening in scene.judge.openings:
        receipt = Envelope.from_bytes(opening.receipt)
        root = root_of([leaf.hash(opening.session) for leaf in opening.leaves])
        assert len(receipt.signatures) == 2
        assert root in receipt.body
        assert opening.inputs.shape[1] == opening.end == min(64 * opening.index + 64, PROMPT + NEW_TOKENS - 1)


def test_where_the_history_is_cropped_or_permuted_less_is_auditable_and_nobody_is_blamed(scene):
    with scene.client() as (remote, results):
        for options in ({"prompt_lookup_num_tokens": 3}, {"num_beams": 2}):
            ask(remote, 30, **options)
        wait_until(lambda: any(result.outcome is Outcome.NOT_AUDITABLE for result in results))
    assert {result.outcome for result in results} <= {Outcome.PASS, Outcome.NOT_AUDITABLE}
    assert {result.owner for result in results} == {""}


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("withholds", r"does not open what it has signed for \(gone\)"),
        ("hangs up", "does not open what it has signed for"),
        ("reopens", "opens other bytes of chunk . than it has signed for"),
        ("garbles", "off by"),
    ],
)
def test_a_server_that_does_evil_is_found_and_named_and_no_other(scene, behaviour, why):
    scene.behave(behaviour)
    with scene.client(evil=True) as (remote, results):
        ask(remote)
        wait_until(lambda: any(result.outcome is Outcome.FAIL for result in results))
        failed = [result for result in results if result.outcome is Outcome.FAIL]
        assert {result.owner for result in failed} == {scene.evil}
        assert re.search(why, failed[0].why)
        remote._connector.forget()
        tokens = ask(remote, 2)  # It is not used any more.
        wait_until(
            lambda: {result.peer_id for result in results if result.outcome is Outcome.PASS} >= {scene.honest[1]}
        )
    assert torch.equal(tokens, ask(scene.local, 2))
    assert {result.owner for result in results if result.outcome is Outcome.FAIL} == {scene.evil}


def test_a_client_without_weights_audits_the_stages_between_the_ends_in_the_same_way(scene):
    scene.behave("garbles")
    with scene.client(evil=True, thin=True) as (remote, results):
        ask(remote)
        wait_until(lambda: any(result.outcome is Outcome.FAIL for result in results))
    assert {result.owner for result in results if result.outcome is Outcome.FAIL} == {scene.evil}


def test_nobody_opens_the_session_of_another_and_its_client_only_so_often(scene):
    with scene.client(audit_rate=0.0) as (remote, results), scene.client(audit_rate=0.0) as (other, _):
        with remote.inference_session(max_length=PROMPT + NEW_TOKENS + 8):
            tokens = ask(remote)
            (chain,) = remote._connector._chains
            stage = chain.route.stages[0]

            def opens(model: Any, end: int) -> int:
                log = StepLog(chain.session, "float32", LLAMA["hidden_size"], 1, end)
                swarm, asked = model._connector._swarm, Reveal(chain.session, 0, end)
                model._connector._loop.run(fetch(swarm.dial, stage, asked, log))
                return log.length

            with pytest.raises(Refused, match="or is somebody else's"):
                opens(other, 1)
            length = PROMPT + NEW_TOKENS - 1
            for _ in range(MAX_REVEALED_SHARE):
                assert opens(remote, length) == length
            with pytest.raises(Refused, match="Enough of this session has been opened"):
                opens(remote, 1)
            assert torch.equal(ask(remote, 5, tokens), ask(scene.local, NEW_TOKENS + 5)), "it goes on undisturbed"
        with pytest.raises(Refused, match="or is somebody else's"):
            opens(other, 1)
        assert MAX_REVEALS > MAX_REVEALED_SHARE
    assert not results, "a rate of 0 switches audits off"
