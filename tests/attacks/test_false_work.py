"""Servers that compute something else than they declare: found in the first audited chunk, told, and used no more.

Real processes on loopback with the bundled model, float32, and its calibration: one of two servers of the upper blocks
changes what it does from test to test. The client has the weights, as any has whose model lies on its machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from dht.audit import Finding
from dht.identity import Identity
from node import AutoDistributedModelForCausalLM
from node.client.audit_book import Outcome, Verdict
from node.config import CLIENT_IDENTITY
from node.errors import NodeError, Refused
from node.verify.client_judge import judge_for_client
from tests.attacks.cheating_server import CHUNK, PROGRAM, WEIGHTS, WORK
from tests.attacks.test_audits import ask, wait_until
from tests.attacks.test_verifier import standing
from tests.churn_kit import Fleet
from tests.processes import bootstrap

LOW, HIGH = (0, 4), (4, 8)
PROMPT, NEW_TOKENS = 70, 4
"""One whole chunk, and the beginning of a second one."""
PATIENCE_S = 90.0
POWER = 0.98
"""With which a check finds a false chunk, as the formula has it."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    home = tmp_path_factory.mktemp("swarm")
    model = str(resources.files("node") / "embedded")
    serving = ("--dtype", "float32", "--num-threads", "1", "--max-memory", "1GiB")
    with bootstrap(home / "bootstrap") as (_, join), Fleet("embedded", join, home / "fleet", *serving) as fleet:
        low, high = fleet.start(LOW, HIGH)
        (cheat,) = fleet.start(HIGH, program=PROGRAM)
        judge = judge_for_client(model, None, None, home)

        def judge_high(opening):
            """One span stays loaded; the other one is of an honest server in all tests."""
            return judge(opening) if opening.stage.start == HIGH[0] else Verdict(Outcome.INCONCLUSIVE)

        yield SimpleNamespace(
            join=join, low=low, high=high, cheat=cheat, home=fleet.servers[cheat].home, model=model,
            local=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            judge=judge_high,
        )  # fmt: skip


@pytest.fixture
def client(swarm, tmp_path, monkeypatch):
    """Connect a client that audits everything, through some of the servers; yield it with what comes of its audits."""
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path))

    @contextlib.contextmanager
    def connected(*peers):
        results = []
        with AutoDistributedModelForCausalLM.from_pretrained(
            swarm.model, join=swarm.join, audit_rate=1.0, judge=swarm.judge, only_peers=list(peers)
        ) as remote:
            remote.on_audited(results.append)
            yield remote, results

    return connected


def prompt(seed, length=PROMPT):
    return torch.randint(3, 500, (1, length), generator=torch.Generator().manual_seed(seed))


def keep_away_from(remote, peer):
    """Let a server be busy for the client, so that the other one of its blocks is chosen."""
    later = Refused("full", "Later.", retryable=True, retry_after_s=30.0)
    remote._connector._loop.call_soon(lambda: remote._connector.failed(peer, later))


@pytest.mark.parametrize("behaviour", [*WORK, *WEIGHTS])
def test_whoever_computes_otherwise_is_found_in_the_first_chunk_and_used_no_more(swarm, client, tmp_path, behaviour):
    (swarm.home / "behaviour").write_text(behaviour)
    with client(swarm.low, swarm.high, swarm.cheat) as (remote, results):
        keep_away_from(remote, swarm.high)
        with remote.inference_session(max_length=PROMPT + NEW_TOKENS):  # Stages keep what they gave as long.
            ask(remote, NEW_TOKENS, prompt([*WORK, *WEIGHTS].index(behaviour)))
            wait_until(lambda: any(result.owner for result in results), PATIENCE_S)
        first = next(result for result in results if result.peer_id == swarm.cheat)
        assert (first.outcome, first.owner, first.index) == (Outcome.FAIL, swarm.cheat, 0)
        remote._connector.forget()
        again = prompt(100)
        tokens = ask(remote, NEW_TOKENS, again)
        assert remote._connector.settle(PATIENCE_S)
    assert torch.equal(tokens, ask(swarm.local, NEW_TOKENS, again))
    assert {result.owner for result in results if result.outcome is Outcome.FAIL} == {swarm.cheat}
    assert swarm.high in {result.peer_id for result in results if result.outcome is Outcome.PASS}
    audits, _ = asyncio.run(standing(swarm.join, Identity.load(tmp_path / CLIENT_IDENTITY).peer_id))
    assert {audit.provider for audit in audits if audit.finding is Finding.FAIL} == {swarm.cheat}


@pytest.mark.parametrize("seed", [0, 1])
def test_who_cheats_in_a_fifth_of_its_chunks_is_found_in_the_first_such_one(swarm, client, seed):
    """And in no more chunks than ``1 - (1 - q c p)^n`` says for 99 %, with all audited: q = 1, c = 0.2."""
    share, session = 0.2, 4
    enough = math.ceil(math.log(0.01) / math.log(1 - share * POWER))
    (swarm.home / "behaviour").write_text(f"adds noise {share} {seed}")
    judged = []
    with client(swarm.low, swarm.cheat) as (remote, results), contextlib.suppress(NodeError):
        for number in range(math.ceil(enough / session)):
            with remote.inference_session(max_length=CHUNK * session + 1):
                ask(remote, 1, prompt(200 + 100 * seed + number, CHUNK * session))
                assert remote._connector.settle(PATIENCE_S)
            own = [result for result in results if result.peer_id == swarm.cheat]
            judged += [each.outcome is Outcome.FAIL for each in sorted(own, key=lambda each: each.index)]
            results.clear()
            if any(judged):
                break
    lots = [line.split()[1] == "1" for line in (swarm.home / "lots").read_text().splitlines() if line[0] == str(seed)]
    assert judged == lots[: len(judged)], "each false chunk fails, and no other"
    assert True in judged[:enough]
