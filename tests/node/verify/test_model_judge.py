"""A judge goes by the calibration that there is now, and begins anew with another one."""

from dataclasses import replace

import pytest

from node.calibrations.current import Current
from node.client.audit_book import Outcome
from node.verify.model_judge import ModelJudge
from tests.node.verify.tiny import Tiny, adds_noise


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("model"))


def test_another_calibration_is_judged_by_from_the_next_opening_on(tiny):
    lenient = replace(
        tiny.calibration,
        honest=tuple(
            replace(each, means=tuple((start, end, 1.0) for start, end, _ in each.means))
            for each in tiny.calibration.honest
        ),
    )
    current = Current(lenient)
    judge = ModelJudge(tiny.checkpoint, current)
    first = judge._judge_now()
    noisy = tiny.opening(adds_noise(0.005))
    assert judge(noisy).outcome is Outcome.PASS
    assert judge._judge_now() is first, "and what is pooled and loaded stays while the calibration does"
    current.use(tiny.calibration)
    assert judge(noisy).outcome is Outcome.FAIL
    assert judge(noisy).measured.calibration == tiny.calibration.digest
