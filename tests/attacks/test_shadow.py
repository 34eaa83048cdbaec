"""Newcomers in a swarm that has no need of them: they earn signatures and passes by duplicates, and deliver nothing.

Real processes on loopback: three established servers of everything, an honest newcomer and a false one. Who is
established is told to the client by the test.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch

from dht.audit import Finding
from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.standing.ranks import Rank, Ranked, Ranks
from node import AutoDistributedModelForCausalLM
from node.client import rank_watch, shadow
from node.client.audit_book import Measured, Outcome, Verdict
from node.config import CLIENT_IDENTITY, LEDGER
from tests.attacks.evil_server import evil_server
from tests.attacks.test_audits import Rerun, ask, wait_until
from tests.attacks.test_verifier import standing
from tests.churn_kit import Fleet
from tests.families import NUM_BLOCKS
from tests.processes import bootstrap
from tests.swarm.models import LLAMA, save

PROMPT, NEW_TOKENS = 420, 8
SPAN = (1, 3)


class Measuring(Rerun):
    """Runs spans again, and says what it has measured: without that, nothing is published."""

    def __call__(self, opening):
        verdict = super().__call__(opening)
        return Verdict(verdict.outcome, verdict.why, Measured(1, 2, 3, bytes(32)))


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "shadowed"
    local = save(directory, "llama", LLAMA, seed=11)
    with (
        bootstrap(tmp_path_factory.mktemp("bootstrap")) as (_, join),
        Fleet(directory, join, tmp_path_factory.mktemp("fleet"), "--num-threads", "1") as fleet,
    ):
        *established, newcomer = fleet.start(*[(0, NUM_BLOCKS)] * 3, SPAN)
        evil, reborn = fleet.start(SPAN, SPAN, program=evil_server("audited"))
        for each in (evil, reborn):
            (fleet.servers[each].home / "behaviour").write_text("garbles")
        yield SimpleNamespace(
            directory=directory, join=join, local=local, established=established, newcomer=newcomer, evil=evil,
            reborn=reborn,
        )  # fmt: skip


@pytest.fixture
def client(swarm, tmp_path, monkeypatch):
    """Generate with a client that knows who is established; return what was found of a newcomer."""
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path))
    monkeypatch.setattr(rank_watch, "_BEGIN_S", 1000.0)  # Nobody has flow here: the test says who has.
    monkeypatch.setattr(shadow, "_LOOK_S", 0.05)
    monkeypatch.setattr(shadow, "MAX_POSITIONS", 20)

    def attempt(newcomer, judge, convicts, options):
        told, audits = [], []
        known = Ranks(
            True,
            dict.fromkeys(swarm.established, Ranked(Rank.ESTABLISHED, 1.0))
            | dict.fromkeys(convicts, Ranked(Rank.CONVICTED, 0.0)),
        )
        with AutoDistributedModelForCausalLM.from_pretrained(
            str(swarm.directory), join=swarm.join, audit_rate=0.0, judge=judge,
            only_peers=[*swarm.established, newcomer, *convicts], **options,
        ) as remote:  # fmt: skip
            network = remote._connector
            network.on_audited, network.on_shadowed = audits.append, told.append
            network._loop.call_soon(lambda: network.outlook.know(known))
            ids = torch.randint(3, 100, (1, PROMPT), generator=torch.Generator().manual_seed(7))
            tokens = ask(remote, NEW_TOKENS, ids)
            assert {stage.peer_id for stage in network.last_route.stages} <= {*swarm.established}
            if options.get("shadow_rate") != 0:
                wait_until(lambda: told, 90.0)
            if network._publisher is not None:  # When the client leaves, this has five seconds.
                network._loop.run(network._publisher.publish())
            budget = network._shadow.budget
        assert torch.equal(tokens, ask(swarm.local, NEW_TOKENS, ids)), "what is delivered is what servers in trust give"
        own = Identity.load(tmp_path / CLIENT_IDENTITY).peer_id
        published, _ = asyncio.run(standing(swarm.join, own))
        with Ledger.open_to_read(tmp_path / LEDGER) as ledger:
            signed = [receipt.record for receipt in ledger.newest(own)]
        work = sum(receipt.work for receipt in signed if receipt.provider == newcomer)
        return SimpleNamespace(told=told, audits=audits, budget=budget, published=published, work=work)

    def generate(newcomer, judge, *, convicts=(), **options):
        """On a machine so busy that a session ends before anything of it is signed, nothing is audited: try again."""
        for _ in range(3):
            found = attempt(newcomer, judge, convicts, options)
            if judge is None or options.get("shadow_rate") == 0 or found.audits:
                break
        return found

    return generate


def test_an_honest_newcomer_has_its_work_signed_for_and_passes(swarm, client):
    judge = Measuring(swarm.directory)
    found = client(swarm.newcomer, judge)
    (shadowed,) = found.told
    assert (shadowed.peer_id, shadowed.outcome) == (swarm.newcomer, Outcome.PASS)
    assert (shadowed.start, shadowed.end) == SPAN
    assert {(result.peer_id, result.outcome, result.is_shadow) for result in found.audits} == {
        (swarm.newcomer, Outcome.PASS, True)
    }
    assert {(audit.provider, audit.finding) for audit in found.published} == {(swarm.newcomer, Finding.PASS)}
    (opening,) = judge.openings
    assert opening.previous in swarm.established, "it stands between servers, as in any session"
    assert found.work == shadowed.num_positions * (SPAN[1] - SPAN[0]), "both have signed for all of it"
    assert 20 * found.budget.duplicated <= found.budget.consumed == NUM_BLOCKS * (PROMPT + NEW_TOKENS - 1)
    assert found.budget.duplicated == NUM_BLOCKS * shadowed.num_positions


def test_a_false_newcomer_is_found_by_who_has_the_weights_and_nothing_of_it_is_delivered(swarm, client):
    found = client(swarm.evil, Measuring(swarm.directory))
    (shadowed,) = found.told
    assert (shadowed.peer_id, shadowed.outcome) == (swarm.evil, Outcome.FAIL)
    assert {(result.owner, result.outcome) for result in found.audits} == {(swarm.evil, Outcome.FAIL)}
    assert {(audit.provider, audit.finding) for audit in found.published} == {(swarm.evil, Finding.FAIL)}


def test_a_convict_that_comes_back_under_a_new_name_is_given_duplicates_only_and_found_by_the_first(swarm, client):
    found = client(swarm.reborn, Measuring(swarm.directory), convicts=[swarm.evil])
    (shadowed,) = found.told
    assert (shadowed.peer_id, shadowed.outcome) == (swarm.reborn, Outcome.FAIL)
    assert {(audit.provider, audit.finding) for audit in found.published} == {(swarm.reborn, Finding.FAIL)}
    assert 20 * found.budget.duplicated <= found.budget.consumed, "a twentieth of what is consumed, at most"


def test_without_a_judge_what_differs_is_told_and_nobody_is_blamed(swarm, client):
    found = client(swarm.evil, None)
    (shadowed,) = found.told
    assert (shadowed.peer_id, shadowed.outcome) == (swarm.evil, Outcome.INCONCLUSIVE)
    assert "come out differently" in shadowed.why
    assert not [result for result in found.audits if result.owner]
    assert not found.published


def test_it_can_be_switched_off(client, swarm):
    found = client(swarm.newcomer, None, shadow_rate=0)
    assert (found.told, found.budget.duplicated) == ([], 0)
