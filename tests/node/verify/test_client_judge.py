"""A client judges where it has weights and a calibration of them, and is told the mend where it was asked to."""

import asyncio

import pytest

from node.check.calibration import encode_calibration
from node.client.audit_book import Outcome
from node.client.auditor import attending_of
from node.errors import BadCalibration, ModelNotFound
from node.verify.client_judge import judge_for_client
from node.verify.model_judge import NO_CALIBRATION
from tests.node.check.figures import calibration
from tests.node.verify.tiny import Tiny, skips_a_layer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    return directory, Tiny(directory)


def test_with_a_calibration_of_its_model_it_judges(model, tmp_path):
    directory, tiny = model
    file = tmp_path / "calibration.json"
    file.write_bytes(encode_calibration(tiny.calibration))
    judge = judge_for_client(str(directory), None, file, tmp_path)
    assert judge(tiny.opening()).outcome is Outcome.PASS
    assert judge(tiny.opening(skips_a_layer)).outcome is Outcome.FAIL


def test_without_one_nothing_is_judged_before_there_is_one(model, tmp_path):
    directory, tiny = model
    judge = judge_for_client(str(directory), None, None, tmp_path)
    assert attending_of(judge) is judge, "its client lets it look for one"
    ruling = judge(tiny.opening(skips_a_layer))
    assert (ruling.outcome, ruling.why, ruling.measured) == (Outcome.INCONCLUSIVE, NO_CALIBRATION, None)
    judge.current.use(tiny.calibration)
    assert judge(tiny.opening(skips_a_layer)).outcome is Outcome.FAIL
    assert judge(tiny.opening()).measured.calibration == tiny.calibration.digest


async def test_one_that_was_given_is_not_looked_for(model, tmp_path):
    directory, tiny = model
    file = tmp_path / "calibration.json"
    file.write_bytes(encode_calibration(tiny.calibration))
    judge = judge_for_client(str(directory), None, file, tmp_path)
    await asyncio.wait_for(judge.attend(None, ()), 5)  # There is no swarm that it could look in.
    bundled = judge_for_client("embedded", None, None, tmp_path)
    await asyncio.wait_for(bundled.attend(None, ()), 5)
    assert bundled.current.calibration.manifest != tiny.calibration.manifest


def test_one_of_another_model_is_refused_with_the_mend(model, tmp_path):
    file = tmp_path / "calibration.json"
    file.write_bytes(encode_calibration(calibration()))
    with pytest.raises(BadCalibration, match="efedllm calibrate"):
        judge_for_client(str(model[0]), None, file, tmp_path)


def test_where_the_weights_are_not_here_after_all_nobody_is_at_fault(model, tmp_path):
    directory, tiny = model
    file, told = tmp_path / "calibration.json", []
    file.write_bytes(encode_calibration(tiny.calibration))
    judge = judge_for_client(str(directory), None, file, tmp_path, told.append)
    weights = directory / "model.safetensors"
    away = weights.rename(tmp_path / "away")
    try:
        ruling = judge(tiny.opening())
    finally:
        away.rename(weights)
    assert (ruling.outcome, len(told)) == (Outcome.INCONCLUSIVE, 1)


def test_a_model_that_is_nowhere_is_said(tmp_path):
    with pytest.raises(ModelNotFound):
        judge_for_client("./nowhere", None, None, tmp_path)
