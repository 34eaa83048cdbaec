"""With the bundled model: claims about right work are refuted, about false work upheld. Thresholds are made up."""

import os
import sys
import threading
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from dht.verdict import Opinion
from node.agreement.offers import profile_digest
from node.calibrations.current import Current
from node.check.calibration_file import shipped_calibration
from node.check.evidence import Evidence, OpenedChunk
from node.check.headers import Header, Piece
from node.check.honest import servers_of
from node.check.reference import reference_span
from node.claims import examiner as examiner_module
from node.claims.examiner import CheckpointExaminer, CurrentExaminer, examiner_of
from node.commitment.chunks import Leaf
from node.errors import BadCalibration
from node.model.checkpoint import EMBEDDED, Checkpoint
from node.model.tensors import to_payload
from tests.node.check.figures import calibration
from tests.node.check.session import held

CPU = torch.device("cpu")
START, END = 2, 4


@pytest.fixture(scope="module")
def examiner():
    checkpoint = Checkpoint.open(EMBEDDED)
    figures = calibration(checkpoint.config.hidden_size, checkpoint.num_blocks, [("float32", "float32")], mean=1e-4)
    return CheckpointExaminer(checkpoint, figures, CPU)


@pytest.fixture(scope="module")
def work(examiner):
    """Hidden states of 128 positions, and what comes out of them."""
    hidden_size = examiner.calibration.hidden_size
    entering = torch.randn(1, 128, hidden_size, generator=torch.Generator().manual_seed(3))
    whole = reference_span(examiner.checkpoint, "float32", 0, END, CPU)
    inputs = whole.view(0, START).forward(entering, whole.view(0, START).new_cache(128, 1), None)
    span = whole.view(START, END)
    return inputs, span.forward(inputs, span.new_cache(128, 1), None)


def evidence_of(inputs, given, held_in="float32"):
    chunks = []
    for index in range(2):
        header = Header(held_in, (Piece(64 * index, 1, 64, 1),)).to_bytes()
        taken = bytes(to_payload(inputs[:, 64 * index : 64 * index + 64], held_in))
        leaf = Leaf(0, index, 64 * index, sha256(header).digest(), sha256(taken).digest(), bytes(32))
        chunks.append(OpenedChunk(leaf, header, taken))
    return Evidence(b"", b"", b"", held_in, "", (), tuple(chunks), bytes(to_payload(given[:, 64:], held_in)))


def claim_of(examiner, **changes):
    terms = {"manifest": examiner.checkpoint.manifest32, "start": START, "end": END, "work": 64 * (END - START)}
    receipt = replace(held().receipt, profile=profile_digest("float32", "float32"), **{**terms, **changes})
    return held().claim(receipt=receipt.to_body())[1]


def test_right_work_is_found_right_and_false_work_false(examiner, work):
    inputs, given = work
    right = examiner(evidence_of(inputs, given), claim_of(examiner))
    assert (right.opinion, right.error_ppm < 1000) == (Opinion.REFUTED, True)
    lazy = given.clone()
    lazy[:, 64:] = inputs[:, 64:]  # It has computed nothing.
    found = examiner(evidence_of(inputs, lazy), claim_of(examiner))
    assert found.opinion is Opinion.UPHELD
    assert found.error_ppm > 100_000


def test_who_does_not_have_what_it_takes_cannot_tell(examiner, work):
    evidence, claim = evidence_of(*work), claim_of(examiner)
    for who, told, why in (
        (replace(examiner, calibration=None), claim, "calibration"),
        (examiner, claim_of(examiner, manifest=bytes(32)), "another model"),
        (replace(examiner, max_bytes=1000), claim, "memory"),
    ):
        found = who(evidence, told)
        assert found.opinion is Opinion.INCONCLUSIVE
        assert why in found.why
    assert examiner(replace(evidence, weights="tape"), claim).opinion is Opinion.INCONCLUSIVE
    assert examiner(replace(evidence, given=b""), claim).opinion is Opinion.INCONCLUSIVE


def test_what_could_not_be_told_can_be_when_a_calibration_has_come(examiner, work):
    evidence, claim, current = evidence_of(*work), claim_of(examiner), Current()
    examine = CurrentExaminer(replace(examiner, calibration=None), current)
    assert examine(evidence, claim).opinion is Opinion.INCONCLUSIVE
    current.use(examiner.calibration)
    assert examine(evidence, claim).opinion is Opinion.REFUTED


@pytest.mark.parametrize("size", [30, 1000])
def test_inputs_made_so_that_no_honest_server_computes_them_well_convict_nobody(examiner, size):
    """Blocks norm what they look at: of hidden states that large, bfloat16 keeps nothing of what is added."""
    honest = CheckpointExaminer(examiner.checkpoint, shipped_calibration(examiner.checkpoint.manifest32), CPU)
    server = servers_of("bfloat16", [CPU])[0].build(examiner.checkpoint, START, END)
    inputs = torch.randn(1, 128, honest.calibration.hidden_size, generator=torch.Generator().manual_seed(3))
    for factor, opinion in ((1, Opinion.REFUTED), (size, Opinion.INCONCLUSIVE)):
        entering = (factor * inputs).bfloat16()
        given = server.forward(entering, server.new_cache(128, 1), None)
        evidence = evidence_of(entering, given, "bfloat16")
        assert honest(evidence, claim_of(examiner)).opinion is opinion
    lazy = evidence_of(inputs.bfloat16(), inputs.bfloat16(), "bfloat16")
    assert honest(lazy, claim_of(examiner)).opinion is Opinion.UPHELD


def test_an_examination_leaves_a_node_half_of_the_memory_that_is_free(examiner, work, monkeypatch):
    monkeypatch.setattr(examiner_module, "free_bytes", lambda _: 2**20)
    found = examiner(evidence_of(*work), claim_of(examiner))
    assert (found.opinion, "memory" in found.why) == (Opinion.INCONCLUSIVE, True)


def test_a_calibration_that_cannot_be_read_keeps_no_node_from_serving(examiner, monkeypatch):
    def damaged(_):
        raise BadCalibration("damaged")

    monkeypatch.setattr(examiner_module, "shipped_calibration", damaged)
    assert examiner_of(examiner.checkpoint).calibration is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_it_gives_way_in_a_thread_of_its_own_and_lowers_nobody_elses(examiner, work, monkeypatch):
    seen = []

    def noting(*arguments):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return genuine(*arguments)

    genuine = examiner_module.work_of
    monkeypatch.setattr(examiner_module, "work_of", noting)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    examiner(evidence_of(*work), claim_of(examiner))
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
