"""Honest work passes, false work fails, and what cannot be judged is nobody's fault and is said once."""

import asyncio
import os
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from node.check import control as control_module
from node.check.control import control_of
from node.check.honest import together
from node.check.patience import until_cancelled
from node.check.reference import reference_span
from node.client.audit_book import Outcome
from node.client.thin_terms import ThinTerms
from node.verify.references import References
from node.verify.span_judge import SpanJudge, work_of
from tests.node.verify.tiny import Tiny, adds_noise, given, ids_given, skips_a_layer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def told():
    return []


@pytest.fixture
def judge(tiny, told):
    return SpanJudge(tiny.checkpoint, tiny.calibration, tell=told.append)


def test_honest_work_passes_with_its_errors_and_the_calibration(tiny, judge, told):
    ruling = judge(tiny.opening())
    assert ruling.outcome is Outcome.PASS
    assert ruling.measured.calibration == tiny.calibration.digest
    assert 0 <= ruling.measured.median_ppm <= ruling.measured.upper_ppm <= ruling.measured.max_ppm < 1000
    assert not told


@pytest.mark.parametrize("cheat", [skips_a_layer, adds_noise(0.05), lambda span, inputs: inputs])
def test_who_skips_a_layer_adds_noise_or_does_nothing_fails(tiny, judge, cheat):
    ruling = judge(tiny.opening(cheat))
    assert ruling.outcome is Outcome.FAIL
    assert ruling.measured.median_ppm > 10_000


def test_the_bytes_that_came_in_pieces_are_judged_like_one(tiny, judge):
    whole = tiny.opening()
    inputs = torch.frombuffer(bytearray(whole.inputs.payload), dtype=torch.float32).reshape(1, 64, 64)
    outputs = together(tiny.span, inputs)
    parts = tuple(given(part) for part in outputs.split(10, dim=1))
    assert judge(replace(whole, outputs=parts)).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"manifest": bytes(32)}, "another model"),
        ({"inputs": replace(given(torch.zeros(1, 64, 64)), codec="ids")}, "another width"),
        ({"codec": "int8"}, "another codec"),
        ({"outputs": (given(torch.zeros(1, 63, 63)),)}, "another size"),
    ],
)
def test_what_cannot_be_judged_is_nobodys_fault_and_is_said_once(tiny, judge, told, changes, why):
    for _ in range(2):
        ruling = judge(tiny.opening(**changes))
        assert (ruling.outcome, ruling.measured) == (Outcome.INCONCLUSIVE, None)
        assert why in ruling.why
    assert len(told) == 1


def test_weights_that_the_calibration_says_nothing_of_are_not_judged(tiny, judge):
    opening = tiny.opening()
    ruling = judge(replace(opening, stage=replace(opening.stage, weights="int4")))
    assert ruling.outcome is Outcome.INCONCLUSIVE
    assert "says nothing of weights in int4" in ruling.why


def test_a_span_that_takes_more_memory_than_allowed_is_not_loaded(tiny, told):
    judge = SpanJudge(tiny.checkpoint, tiny.calibration, max_bytes=100_000, tell=told.append)
    assert "more than the 100,000 that a judge may take" in judge(tiny.opening()).why
    assert judge._references._span is None


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), MemoryError(), OSError("the disk is gone")])
def test_a_machine_that_fails_is_nobodys_fault_and_ends_no_verifier(tiny, judge, told, monkeypatch, error):
    def fails(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(References, "span", fails)
        verdict = judge(tiny.opening())
    assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, None)
    assert verdict.why == f"it could not be judged: {str(error) or 'MemoryError'}"
    assert len(told) == 1
    assert judge(tiny.opening()).outcome is Outcome.PASS


@pytest.mark.parametrize("sampling", [None, (0.0, 0, 1.0, 0)])
def test_a_whole_route_of_a_client_without_weights_is_run_again_from_ids_to_answers(tiny, judge, told, sampling):
    honest = tiny.ends_opening(sampling)
    ruling = judge(honest)
    assert (ruling.outcome, ruling.measured.calibration) == (Outcome.PASS, tiny.calibration.digest), ruling.why
    assert judge(tiny.ends_opening(sampling, logits_of=lambda logits: -logits)).outcome is Outcome.FAIL
    assert not told


def test_a_first_stage_that_embeds_is_judged_by_its_hidden_states(tiny, judge):
    ids = torch.randint(0, 128, (1, 64), generator=torch.Generator().manual_seed(1))
    entered = tiny.ends.embed(ids, 0)
    for outputs, outcome in ((together(tiny.span, entered), Outcome.PASS), (entered, Outcome.FAIL)):
        opening = replace(tiny.opening(), inputs=ids_given(ids), outputs=(given(outputs),), thin=ThinTerms(64))
        assert judge(opening).outcome is outcome


def test_tokens_that_were_drawn_by_a_seed_are_nobodys_fault_and_nothing_is_loaded(tiny, told):
    judge = SpanJudge(tiny.checkpoint, tiny.calibration, tell=told.append)
    assert judge(tiny.ends_opening((1.0, 0, 1.0, 7))).outcome is Outcome.INCONCLUSIVE
    assert "drew by a seed" in told[0]
    assert judge._references._span is None


def test_ends_that_do_not_fit_into_the_memory_are_not_loaded(tiny, told):
    judge = SpanJudge(tiny.checkpoint, tiny.calibration, max_bytes=1000, tell=told.append)
    assert "To load the embedding takes " in judge(tiny.ends_opening(None)).why


def slowed(span, pause_s):
    """Let every module of a span take its time, as in a large model."""
    begun = threading.Event()

    def pause(*_):
        begun.set()
        time.sleep(pause_s)

    for module in (each for layer in span._trunk.layers for each in layer.modules()):
        module.register_forward_pre_hook(pause)
    return begun


def test_who_leaves_does_not_wait_for_the_check_that_is_under_way(tiny, judge, told):
    opening = tiny.opening(skips_a_layer)
    begun = slowed(judge._references.span("float32", 0, 2), 0.5)

    async def leave():
        auditing = asyncio.create_task(until_cancelled(judge, opening))
        await asyncio.to_thread(begun.wait, 5)
        auditing.cancel()

    began_s = time.monotonic()
    asyncio.run(leave())  # Waits for its threads, as a process that ends does.
    judge._thread.run(lambda: None)
    assert time.monotonic() - began_s < 2.5
    assert told == []


def test_who_leaves_does_not_wait_for_the_control_that_is_under_way(tiny):
    work = work_of(tiny.opening(skips_a_layer))
    begun = threading.Event()

    def build(*arguments):
        span = reference_span(tiny.checkpoint, "float32", 0, 2, torch.device("cpu"))
        slowed(span, 0.5)
        begun.set()
        return span

    async def leave():
        controlling = until_cancelled(control_of, tiny.checkpoint, "float32", 0, 2, work, max_bytes=2**30)
        controlling = asyncio.create_task(controlling)
        await asyncio.to_thread(begun.wait, 5)
        controlling.cancel()

    began_s = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_module, "servers_of", lambda *_: [SimpleNamespace(build=build)])
        asyncio.run(leave())
    assert time.monotonic() - began_s < 2.5


def test_infinite_inputs_blame_nobody(tiny, judge):
    inputs = torch.full((1, 64, 64), float("inf"))
    opening = replace(tiny.opening(), inputs=given(inputs), outputs=(given(torch.zeros(1, 64, 64)),))
    assert judge(opening).outcome is Outcome.INCONCLUSIVE


def test_what_no_single_chunk_shows_fails_in_the_pool(tiny):
    """Errors of twice the honest mean, where a chunk fails at three times: only the mean of eight says so."""
    mean = 1e-4
    honest = tuple(
        replace(
            each,
            means=tuple((start, end, mean) for start, end, _ in each.means),
            tails=tuple((n, replace(tail, median=(3.0,) * 4, high=9.0, largest=99.0)) for n, tail in each.tails),
            pooled=1.0,
        )
        for each in tiny.calibration.honest
    )
    judge = SpanJudge(tiny.checkpoint, replace(tiny.calibration, honest=honest))
    rulings = [judge(tiny.opening(adds_noise(2 * mean), seed=seed)) for seed in range(8)]
    assert {ruling.outcome for ruling in rulings[:7]} == {Outcome.PASS}
    assert rulings[7].outcome is Outcome.FAIL
    assert rulings[7].why.startswith("over 8 chunks errors are ")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_the_judge_gives_way_to_everything_else(judge):
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    of_judge = judge._thread.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert of_judge == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
