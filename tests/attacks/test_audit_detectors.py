"""AuditDetector: honest in sessions that may be audits, short and odd ones, and false in all others.

It meets canaries and people's sessions (the code behind ``efedllm generate``) of the same texts and lengths, in one
real process on loopback, and is told apart from an honest server by both as often.
"""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from node.check.calibration import encode_calibration
from node.client.audit_book import Outcome, Verdict
from node.client.audit_draw import PER_MILLE
from node.model.checkpoint import Checkpoint
from node.run.generate import GenerateOptions, connect, stream_answer
from node.verify.canary import Canary, CanaryModel
from node.verify.canary_plan import Guise
from node.verify.canary_text import CanaryTexts
from node.verify.client_judge import judge_for_client
from tests.attacks.evil_server import SHORT, evil_server
from tests.churn_kit import Fleet
from tests.families import NUM_BLOCKS, VOCABULARY
from tests.node.verify.tiny import calibration_of
from tests.processes import bootstrap
from tests.swarm.models import LLAMA, save

SESSIONS = 8


class Nobody(BaseStreamer):
    """Reads what is generated."""

    def put(self, value):
        pass

    def end(self):
        pass


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    home = tmp_path_factory.mktemp("swarm")
    directory, calibration = home / "model", home / "calibration.json"
    save(directory, "llama", LLAMA, seed=11)
    made = calibration_of(Checkpoint.open(str(directory)), vocabulary=VOCABULARY)
    calibration.write_bytes(encode_calibration(made))
    with (
        pytest.MonkeyPatch.context() as environment,
        bootstrap(home / "bootstrap") as (_, join),
        Fleet(directory, join, home / "fleet", "--num-threads", "1") as fleet,
    ):
        environment.setenv("EFEDLLM_HOME", str(home / "client"))
        (detector,) = fleet.start((0, NUM_BLOCKS), program=evil_server("detects"))
        seen = fleet.servers[detector].home / "seen.jsonl"
        yield SimpleNamespace(
            directory=directory, calibration=calibration, home=home, join=join, detector=detector, seen=seen
        )


def outcomes_of(swarm, openings):
    """Judge what one session has opened, by itself: a judge that goes on remembers a server's earlier chunks."""
    judge = judge_for_client(str(swarm.directory), None, swarm.calibration, swarm.home)
    return {judge(opening).outcome for opening in openings}


def as_a_person(swarm, script):
    """Do what ``efedllm generate`` does, and draw all chunks; judged later, or the session would end with the first."""
    openings = []
    options = GenerateOptions(
        str(swarm.directory), None, swarm.join, "", script.num_new, True, None, None, None, torch.float32, audit_rate=0
    )  # fmt: skip
    with connect(options) as model:
        network = model._connector
        network._auditor.per_mille = PER_MILLE
        network._auditor.judge = lambda opening: openings.append(opening) or Verdict(Outcome.INCONCLUSIVE)
        ids = torch.tensor([script.prompt])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with model.inference_session(ids.shape[1] + script.num_new + 1):
            stream_answer(model, inputs, options, Nobody())
        assert network.settle(60.0)
    return outcomes_of(swarm, openings)


def as_a_canary(swarm, canaries, script):
    findings = Canary(Guise.WITH_ENDS).run(canaries, {swarm.detector}, script)
    assert not findings.why_not
    return outcomes_of(swarm, [result.opening for result in findings.results if result.opening is not None])


def test_who_cheats_unless_a_session_looks_like_an_audit_is_found_by_canaries_as_often_as_by_people(swarm):
    chance = random.Random(0)
    texts, canaries = (
        CanaryTexts(VOCABULARY, 512, chance),
        CanaryModel(Checkpoint.open(str(swarm.directory)), swarm.join),
    )
    texts.keep([chance.randrange(3, VOCABULARY) for _ in range(400)])
    found = {"canary": 0, "person": 0}
    for _ in range(SESSIONS):
        script = texts.next()
        kinds = [("canary", lambda s: as_a_canary(swarm, canaries, s)), ("person", lambda s: as_a_person(swarm, s))]
        for kind, run in chance.sample(kinds, 2):
            outcomes = run(script)
            assert outcomes
            assert outcomes <= {Outcome.PASS, Outcome.FAIL}
            found[kind] += Outcome.FAIL in outcomes
    notes = [json.loads(line) for line in swarm.seen.read_text().splitlines()]
    assert len(notes) == 2 * SESSIONS
    for one, other in zip(notes[::2], notes[1::2], strict=True):
        assert one["looks"] == other["looks"], "nothing that a server is told at the beginning tells them apart"
    cheated = sum(note["cheats"] for note in notes) // 2
    assert 0 < cheated < SESSIONS, f"some sessions are of less than {SHORT} positions, and some are not"
    assert found == {"canary": cheated, "person": cheated}, "each session in which it cheats is found, and no other"
