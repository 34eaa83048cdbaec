"""A canary that cannot go through brings home why, and one that is stopped ends with its next token."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from node.client.audit_book import AuditResult, Outcome
from node.errors import MissingBlocks
from node.verify.canary import Canary
from node.verify.canary_plan import Guise
from node.verify.canary_text import Script

SCRIPT = Script((1, 2, 3), 5)


class Model:
    """Connects to nobody: ``generate`` and ``settle`` are what a test says."""

    def __init__(self, generate, settle=lambda timeout_s: True):
        self.generate, self.settle = generate, settle

    @contextlib.contextmanager
    def connected(self, canary, peers):
        self.peers = peers
        yield (
            SimpleNamespace(
                generate=lambda **given: self.generate(canary, **given),
                inference_session=lambda max_length: contextlib.nullcontext(),
            ),
            self,
        )


def fails(canary, **given):
    canary.take_result(AuditResult("peer", bytes(16), 0, 0, Outcome.FAIL, "opens nothing", "peer"))
    raise MissingBlocks("no server")


def writes(canary, input_ids, max_new_tokens, **given):
    return torch.cat([input_ids, torch.zeros(1, max_new_tokens, dtype=torch.long)], dim=1)


def test_what_was_found_before_a_session_broke_is_not_lost():
    findings = Canary().run(Model(fails), {"peer"}, SCRIPT)
    assert (findings.text, findings.why_not) == ((), "no server")
    assert [result.owner for result in findings.results] == ["peer"]


def test_its_text_is_brought_home_when_nothing_is_left_to_open():
    asked = []
    model = Model(writes, lambda timeout_s: asked.append(timeout_s) or len(asked) == 3)
    findings = Canary().run(model, {"peer"}, SCRIPT)
    assert (findings.text, findings.why_not) == ((1, 2, 3, 0, 0, 0, 0, 0), "")
    assert len(asked) == 3
    assert model.peers == {"peer"}


def test_one_that_is_stopped_generates_no_further_and_waits_for_nothing():
    def stopped(canary, input_ids, stopping_criteria, **given):
        assert not stopping_criteria(input_ids, None).any()
        canary.stop()
        assert stopping_criteria(input_ids, None).all()
        return input_ids

    assert Canary().run(Model(stopped, lambda timeout_s: pytest.fail("it waits")), {"peer"}, SCRIPT).text == (1, 2, 3)


@pytest.mark.parametrize("guise", Guise)
def test_it_samples_unless_the_server_would_do_so_by_a_seed(guise):
    asked = []
    model = Model(lambda canary, **given: asked.append(given["do_sample"]) or writes(canary, **given))
    Canary(guise).run(model, {"peer"}, SCRIPT)
    assert asked == [guise is not Guise.ASKS_TOKENS]


def test_what_is_opened_is_kept_and_says_nothing_yet():
    verdict = Canary().take_opening(SimpleNamespace())
    assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, None)
