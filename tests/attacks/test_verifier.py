"""A verifier among servers of which one adds noise to what it computes: it finds that one and nobody else.

Real processes on loopback. The model is random and tiny; its calibration is made here, by the function behind ``efedllm
calibrate``, of so few chunks that its percentiles are rough.
"""

import asyncio
import contextlib
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from dht.audit import Audit, Finding
from dht.ident import Ident, Role, shard_of
from dht.identity import Identity, peer_id_to_bytes
from dht.parameters import parse_join
from dht.records import Kind
from dht.swarm import Swarm
from node import AutoDistributedModelForCausalLM
from node.check.calibration import encode_calibration
from node.config import CLIENT_IDENTITY
from node.errors import NodeError
from node.model.checkpoint import Checkpoint
from node.verify.client_judge import judge_for_client
from tests.attacks.evil_server import evil_server
from tests.churn_kit import Fleet
from tests.families import VOCABULARY
from tests.node.verify.tiny import calibration_of
from tests.processes import NodeProcess, bootstrap
from tests.swarm.models import LLAMA, SPANS, save

PATIENCE_S = 90.0


async def standing(join, verifier):
    """Return the audits and the identity that stand on the DHT under a verifier's key."""
    async with Swarm(Identity.ephemeral(), join=parse_join(join), client_mode=True) as swarm:
        rules = await swarm.wait_for_rules(10.0)
        now = rules.epoch_of(time.time())
        key = peer_id_to_bytes(verifier)
        found = [await swarm.fetch(Kind.AUDIT, (key, epoch)) for epoch in (now - 1, now)]
        idents = [each for each in await swarm.fetch(Kind.IDENT, (shard_of(verifier),)) if isinstance(each, Ident)]
        audits = [each for records in found for each in records if isinstance(each, Audit)]
        return audits, {each.roles for each in idents if each.peer == verifier}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    home = tmp_path_factory.mktemp("swarm")
    directory, calibration = home / "model", home / "calibration.json"
    save(directory, "llama", LLAMA, seed=11)
    made = calibration_of(Checkpoint.open(str(directory)), vocabulary=VOCABULARY)
    calibration.write_bytes(encode_calibration(made))
    with (
        bootstrap(home / "bootstrap") as (_, join),
        Fleet(directory, join, home / "fleet", "--num-threads", "1") as fleet,
    ):
        honest = fleet.start(SPANS[0], SPANS[2])
        (evil,) = fleet.start(SPANS[1], program=evil_server("noises"))
        yield SimpleNamespace(
            directory=directory, calibration=calibration, digest=made.digest, join=join, honest={*honest}, evil=evil
        )


@pytest.mark.full
def test_the_verifier_finds_who_adds_noise_and_nobody_else_and_its_records_say_so(swarm, tmp_path):
    honest, evil = swarm.honest, swarm.evil
    command = ["verify", str(swarm.directory), "--join", swarm.join, "--calibration", str(swarm.calibration)]
    verifier = NodeProcess([*command, "--canaries-per-epoch", "20000", "--num-threads", "1"], tmp_path / "verifier")
    try:
        ready = verifier.ready()
        assert ready["role"] == "verifier"
        found, until_s = [], time.monotonic() + PATIENCE_S
        while {event["peer_id"] for event in found} != honest | {evil}:
            event = verifier.events.get(timeout=max(0.1, until_s - time.monotonic()))
            assert event is not None, verifier.errors
            if event["event"] == "audited" and event["outcome"] in ("pass", "fail"):
                found.append(event)
        while event["event"] != "canary":  # What the first one has found is published by then.
            event = verifier.events.get(timeout=max(0.1, until_s - time.monotonic()))
        audits, roles = asyncio.run(standing(swarm.join, ready["peer_id"]))
        verifier.signal(signal.SIGTERM)
        assert verifier.wait() == 0
    finally:
        verifier.stop()
    assert {event["peer_id"] for event in found if event["outcome"] == "fail"} == {evil}
    assert {event["peer_id"] for event in found if event["outcome"] == "pass"} == honest
    assert {audit.provider for audit in audits if audit.finding is Finding.FAIL} == {evil}
    assert {audit.provider for audit in audits if audit.finding is Finding.PASS} == honest
    consumers = {audit.consumer for audit in audits}
    assert ready["peer_id"] not in consumers, "it goes under other names"
    assert {audit.calibration for audit in audits} == {swarm.digest}
    assert roles == {Role.VERIFIER}
    said = "\n".join(verifier.errors)
    assert f"The server {evil} has failed an audit" in said
    assert f"{evil} (blocks 2:3) FAILED; " in said
    for peer in honest:
        assert f"{peer} (blocks " in said
        assert f"The server {peer}" not in said


@pytest.mark.full
def test_a_client_that_has_the_weights_finds_it_too_and_its_records_stand_under_its_own_identity(
    swarm, tmp_path, monkeypatch
):
    home = tmp_path / "client"
    home.mkdir()
    monkeypatch.setenv("EFEDLLM_HOME", str(home))
    results = []
    judge = judge_for_client(str(swarm.directory), None, swarm.calibration, home)
    with AutoDistributedModelForCausalLM.from_pretrained(
        str(swarm.directory), join=swarm.join, audit_rate=1.0, judge=judge
    ) as model:
        model.on_audited(results.append)
        ids = torch.randint(3, 100, (1, 40), generator=torch.Generator().manual_seed(7))
        with contextlib.suppress(NodeError):  # Nobody else holds these blocks.
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
        until_s = time.monotonic() + PATIENCE_S
        while {result.peer_id for result in results if result.measured is not None} != swarm.honest | {swarm.evil}:
            assert time.monotonic() < until_s, results
            time.sleep(0.1)
    own = Identity.load(home / CLIENT_IDENTITY).peer_id
    audits, _ = asyncio.run(standing(swarm.join, own))
    assert {audit.consumer for audit in audits} == {own}
    assert {audit.provider for audit in audits if audit.finding is Finding.FAIL} == {swarm.evil}
    assert {audit.provider for audit in audits if audit.finding is Finding.PASS} == swarm.honest
