"""Servers that compute their blocks as they should and lie at the ends: in the embedding, in logits, in tokens.

Real processes on loopback; the clients hold no weights, and their judges do. Each liar is found and named; honest
servers in float32, in bfloat16 and with weights in 8 bits are not, as long as they declare what they hold.
"""

import contextlib
import json
import signal
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from node import AutoDistributedModelForCausalLM
from node.check.calibration import encode_calibration
from node.client.audit_book import Outcome
from node.errors import NodeError
from node.model.checkpoint import Checkpoint
from node.verify.client_judge import judge_for_client
from tests.attacks.evil_server import evil_server
from tests.churn_kit import Fleet
from tests.families import VOCABULARY
from tests.node.verify.tiny import calibration_of
from tests.processes import NodeProcess, bootstrap, run_command
from tests.swarm.models import LLAMA, save

FIRST, LAST = (0, 2), (2, 4)
PROMPT, NEW_TOKENS = 40, 40
PATIENCE_S = 90.0
KINDS = {"float32": ("--dtype", "float32"), "bfloat16": ("--dtype", "bfloat16"), "int8": ("--quantize", "int8")}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    home = tmp_path_factory.mktemp("swarm")
    directory, calibration = home / "model", home / "calibration.json"
    save(directory, "llama", LLAMA, seed=11)
    made = calibration_of(
        Checkpoint.open(str(directory)), vocabulary=VOCABULARY, num_texts=8, kinds=("float32", "bfloat16", "int8")
    )
    calibration.write_bytes(encode_calibration(made))
    with pytest.MonkeyPatch.context() as environment, contextlib.ExitStack() as exits:
        environment.setenv("EFEDLLM_HOME", str(home / "client"))
        _, join = exits.enter_context(bootstrap(home / "bootstrap"))
        fleets = {
            kind: exits.enter_context(Fleet(directory, join, home / kind, "--num-threads", "1", *options))
            for kind, options in KINDS.items()
        }
        evil = fleets["float32"].start(FIRST, LAST, program=evil_server("ends"))
        (first, *_), lasts = fleets["float32"].start(FIRST), {kind: fleets[kind].start(LAST)[0] for kind in KINDS}
        yield SimpleNamespace(
            directory=directory,
            calibration=calibration,
            join=join,
            fleet=fleets["float32"],
            first=first,
            lasts=lasts,
            evil_first=evil[0],
            evil_last=evil[1],
            judge=judge_for_client(str(directory), None, calibration, home),
        )


def behave(swarm, peer, name):
    (swarm.fleet.servers[peer].home / "behaviour").write_text(name)


def audited(swarm, peers, *, thin=True, server_sampling=False, judge=None, anchors=()):
    """Run a session through ``peers``, of a client without weights or with ends; return what came of all chunks.

    Anchors judge where there are some.
    """
    results = []
    with AutoDistributedModelForCausalLM.from_pretrained(
        str(swarm.directory), join=swarm.join, thin=thin, server_sampling=server_sampling, audit_rate=1.0,
        judge=None if anchors else judge or swarm.judge, anchors=anchors, ask_anchors=bool(anchors), only_peers=peers,
    ) as remote:  # fmt: skip
        remote.on_audited(results.append)
        ids = torch.randint(3, 100, (1, PROMPT), generator=torch.Generator().manual_seed(7))
        with contextlib.suppress(NodeError):  # Who was found is used no more, and nobody else is allowed.
            remote.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS,
                min_new_tokens=None if server_sampling else NEW_TOKENS, do_sample=False,
            )  # fmt: skip
        assert remote._connector.settle(PATIENCE_S), results
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server_sampling", [False, True])
def test_honest_ends_pass_in_every_way_to_hold_weights_that_is_declared(swarm, kind, server_sampling):
    results = audited(swarm, [swarm.first, swarm.lasts[kind]], server_sampling=server_sampling)
    assert {(each.outcome, each.owner) for each in results} == {(Outcome.PASS, "")}, results
    assert all(each.measured is not None for each in results)
    assert {each.peer_id for each in results} == {swarm.first, swarm.lasts[kind]}


@pytest.mark.parametrize(
    ("behaviour", "server_sampling"), [("second best", False), ("second best", True), ("noisy", False)]
)
def test_a_last_stage_that_lies_in_its_head_alone_is_found_and_no_other(swarm, behaviour, server_sampling):
    behave(swarm, swarm.evil_last, behaviour)
    results = audited(swarm, [swarm.first, swarm.evil_last], server_sampling=server_sampling)
    failed = [each for each in results if each.outcome is Outcome.FAIL]
    assert {each.owner for each in failed} == {swarm.evil_last}, results
    assert all(each.measured is not None for each in failed)


def test_a_first_stage_that_embeds_other_words_is_found_and_no_other(swarm):
    behave(swarm, swarm.evil_first, "other words")
    results = audited(swarm, [swarm.evil_first, swarm.lasts["float32"]], server_sampling=False)
    assert {each.owner for each in results if each.outcome is Outcome.FAIL} == {swarm.evil_first}, results


@pytest.mark.parametrize("thin", [False, True])
def test_weights_in_8_bits_pass_as_what_is_declared_and_fail_as_anything_else(swarm, thin):
    """The same bytes of a real server, once as it announces itself and once as if it had announced float32."""
    undeclared = []

    def judge(opening):
        if opening.stage.peer_id == swarm.lasts["int8"]:
            assert opening.stage.weights == "int8"
            other = judge_for_client(str(swarm.directory), None, swarm.calibration, swarm.directory.parent)
            undeclared.append(other(replace(opening, stage=replace(opening.stage, weights="float32"))))
        return swarm.judge(opening)

    results = audited(swarm, [swarm.first, swarm.lasts["int8"]], thin=thin, judge=judge)
    assert {(each.outcome, each.owner) for each in results} == {(Outcome.PASS, "")}, results
    assert undeclared
    assert {ruling.outcome for ruling in undeclared} == {Outcome.FAIL}


@pytest.fixture
def anchor(swarm, tmp_path):
    """A verifier whom clients may trust, and who hardly runs sessions of its own."""
    command = ["verify", str(swarm.directory), "--join", swarm.join, "--calibration", str(swarm.calibration)]
    verifier = NodeProcess([*command, "--canaries-per-epoch", "1", "--num-threads", "1"], tmp_path / "verifier")
    try:
        yield SimpleNamespace(process=verifier, peer_id=verifier.ready()["peer_id"])
    finally:
        verifier.stop()


def test_a_client_without_weights_has_an_anchor_judge_and_the_anchor_earns_receipts_for_it(swarm, anchor):
    behave(swarm, swarm.evil_first, "")
    behave(swarm, swarm.evil_last, "second best")
    told, honest = [anchor.peer_id], (swarm.first, swarm.lasts["float32"])
    passed = audited(swarm, honest, anchors=told)
    assert {(each.peer_id, each.outcome) for each in passed} == {(peer, Outcome.PASS) for peer in honest}, passed
    found = audited(swarm, [swarm.first, swarm.evil_last], anchors=told)
    assert {each.owner for each in found if each.outcome is Outcome.FAIL} == {swarm.evil_last}, found

    process = anchor.process
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    judged = [event for event in iter(partial(process.events.get, timeout=0.1), None) if event["event"] == "judged"]
    assert {event["outcome"] for event in judged} == {"pass", "fail"}
    assert all(event["signed"] for event in judged)
    listed = run_command(["receipts", "--json"], process.home).stdout.splitlines()
    receipts = [json.loads(line) for line in listed]
    earned = [receipt for receipt in receipts if receipt["provider"] == anchor.peer_id]
    assert {receipt["kind"] for receipt in earned} == {"audit"}
    assert sum(receipt["amount"] for receipt in earned) == sum(event["tokens"] for event in judged) > 0


@pytest.mark.full
@pytest.mark.timeout(6 * PATIENCE_S)
def test_the_verifier_finds_a_head_that_lies_and_nobody_else(swarm, tmp_path):
    """Also where all of its blocks are right: some of its canaries go without weights."""
    behave(swarm, swarm.evil_first, "")
    behave(swarm, swarm.evil_last, "second best")
    command = ["verify", str(swarm.directory), "--join", swarm.join, "--calibration", str(swarm.calibration)]
    verifier = NodeProcess([*command, "--canaries-per-epoch", "20000", "--num-threads", "1"], tmp_path / "verifier")
    found, honest = {}, {swarm.first, swarm.evil_first, *swarm.lasts.values()}
    try:
        verifier.ready()
        until_s = time.monotonic() + 5 * PATIENCE_S
        while not (found.get("fail") and found.get("pass", set()) >= honest):
            event = verifier.events.get(timeout=max(0.1, until_s - time.monotonic()))
            assert event is not None, verifier.errors
            if event["event"] == "audited":
                found.setdefault(event["outcome"], set()).add(event["owner"] or event["peer_id"])
        verifier.signal(signal.SIGTERM)
        assert verifier.wait() == 0
    finally:
        verifier.stop()
    assert found["fail"] == {swarm.evil_last}
