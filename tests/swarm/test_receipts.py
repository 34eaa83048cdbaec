"""Receipts as a user meets them: real processes, an answer, and what each machine says of it afterwards."""

import json
import os
import subprocess
import sys
import time

import pytest

from dht.identity import Identity
from tests.processes import NodeProcess, bootstrap

EPOCH_S = 8
NUM_KEYS = 10
"""Providers times epochs: of fewer than 8, a newcomer cannot tell whether a snapshot is whole."""
PUBLISHED_S = 60.0
"""Until a receipt is on the DHT, and an epoch has been summed up, on a machine that is busy."""


def run(home, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "node", *arguments],
        env={**os.environ, "EFEDLLM_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    return ended


def receipts(home, *arguments: str) -> list[dict]:
    return [json.loads(line) for line in run(home, "receipts", "--json", *arguments).stdout.splitlines()]


def serve(home, code: str, blocks: str) -> NodeProcess:
    return NodeProcess(
        ["serve", "embedded", "--join", code, "--blocks", blocks, "--num-threads", "1", "--max-memory", "1GiB"], home
    )


def generate(home, code: str) -> None:
    asked = ("--prompt", "This package provides", "--max-new-tokens", "100", "--greedy")
    run(home, "generate", "embedded", "--join", code, *asked)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory):
    """A swarm that has answered once: homes by name, and the join code."""
    homes = {name: tmp_path_factory.mktemp(name) for name in ("b", "first", "second", "client", "other")}
    with bootstrap(homes["b"], "--epoch", str(EPOCH_S)) as (_, code):
        servers = [serve(homes["first"], code, "0:4"), serve(homes["second"], code, "4:8")]
        try:
            for server in servers:
                server.ready()
            generate(homes["client"], code)
            yield homes, code
        finally:
            for server in servers:
                server.stop()


def totals(found: list[dict]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for each in found:
        pair = each["provider"], each["consumer"]
        sums[pair] = sums.get(pair, 0) + each["amount"]
    return sums


def test_anyone_reads_from_the_dht_who_did_how_much_for_whom(swarm):
    homes, code = swarm
    held = totals(receipts(homes["client"]))
    assert len(held) == 2, "one for each server"
    assert min(held.values()) > 90
    assert totals(receipts(homes["first"])).items() < held.items()
    deadline_s = time.monotonic() + PUBLISHED_S
    while (found := totals(receipts(homes["other"], "--join", code))) != held:
        assert time.monotonic() < deadline_s, found
    provider, consumer = next(iter(held))
    one = receipts(homes["other"], "--join", code, "--provider", provider)
    assert totals(one) == {(provider, consumer): held[provider, consumer]}
    assert receipts(homes["other"], "--join", code, "--consumer", provider) == []
    assert not (homes["other"] / "ledger.sqlite").exists()


def test_a_newcomer_uses_the_snapshot_of_the_bootstrap(swarm):
    homes, code = swarm
    while len({(made["provider"], made["epoch"]) for made in receipts(homes["client"])}) < NUM_KEYS:
        generate(homes["client"], code)
    held = totals(receipts(homes["client"]))
    whose = f"The snapshot of {Identity.load(homes['b'] / 'identity').peer_id}"
    deadline_s = time.monotonic() + PUBLISHED_S
    while True:
        said = run(homes["other"], "receipts", "--json", "--join", code)
        found = totals([json.loads(line) for line in said.stdout.splitlines()])
        if "is used" in said.stderr and found == held:
            break
        assert time.monotonic() < deadline_s, (said.stderr, found, held)
    assert whose in said.stderr


def test_every_machine_tells_what_it_gave_and_took(swarm):
    homes, _ = swarm
    given = json.loads(run(homes["first"], "statement", "--json").stdout)
    taken = json.loads(run(homes["client"], "statement", "--json").stdout)
    assert given["taken"]["tokens"] == taken["given"]["tokens"] == 0
    assert given["given"]["tokens"] * 2 == taken["taken"]["tokens"] > 0
    assert given["unsigned"] == taken["unsigned"] == []
    assert (given["keys"][0]["safe"], taken["keys"][0]["safe"]) == (False, True)
    assert "Everybody has signed." in run(homes["first"], "statement").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("receipts", "--provider", "x"), 23, "is no peer id"),
        (("receipts", "--since", "soon"), 2, "is no date"),
        (("receipts", "--join", "x"), 6, "the join code"),
        (("receipts", "--json", "--csv"), 2, "not allowed with"),
        (("receipts", "--repair"), 23, "add --join CODE"),
        (("statement", "--since", "2999-01-01"), 2, "lies ahead"),
    ],
)
def test_a_wrong_argument_gives_one_sentence_and_a_code(tmp_path, arguments, code, said):
    line = run(tmp_path, *arguments, code=code).stderr
    assert line.startswith("efedllm: ")
    assert said in line
    assert line.count("\n") == 1
