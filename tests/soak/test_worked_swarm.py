"""A swarm works for a while, an hour in the long run; then a newcomer says from the DHT alone who did what for whom."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.errors import DhtError
from dht.receipts.ledger import Ledger
from dht.work import Receipt
from node import AutoDistributedModelForCausalLM
from node.config import LEDGER
from node.errors import NodeError
from tests.churn_kit import Fleet
from tests.processes import bootstrap, run_command
from tests.swarm.models import LLAMA, SPANS, save

NUM_CLIENTS = 3
PAUSE_S = (0.2, 2.0)
ROUNDING = 1e-5
"""Two logits that differ by less are equal: they have a spread of 2.4, and 24 bits."""
PUBLISHED_WITHIN_S = 30.0
NUM_LATE = 1
"""Servers that come when the others have worked for half of the time."""

Totals = Counter[tuple[str, str, str]]
"""Tokens by provider, consumer and kind of work."""


class Worker(threading.Thread):
    """A client that generates texts of random lengths, with pauses, and checks every token."""

    def __init__(self, directory: Path, join: str, home: Path, local: Any, seed: int, until_s: float) -> None:
        super().__init__(daemon=True)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("EFEDLLM_HOME", str(home))
            self.model = AutoDistributedModelForCausalLM.from_pretrained(str(directory), join=join)
        self.home, self.num_answers, self.failures, self.has_ended = home, 0, list[str](), False
        self._local, self._chance, self._until_s = local, random.Random(seed), until_s

    def run(self) -> None:
        """Work until the time is over."""
        while time.monotonic() < self._until_s:
            try:
                self._answer()
            except (NodeError, DhtError) as error:
                self.failures.append(repr(error))
            time.sleep(self._chance.uniform(*PAUSE_S))
        self.has_ended = True

    def _answer(self) -> None:
        length, num_tokens = self._chance.randint(1, 90), self._chance.randint(1, 60)
        ids = torch.randint(3, 100, (1, length), generator=torch.Generator().manual_seed(self._chance.randrange(99)))
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": num_tokens, "do_sample": False}
        tokens, expected = self.model.generate(ids, **settings), self._local.generate(ids, **settings)
        if not torch.equal(tokens, expected) and not self._is_tie(tokens[0], expected[0]):
            self.failures.append(f"wrong tokens after {self.num_answers} answers")
        self.num_answers += 1

    def _is_tie(self, tokens: torch.Tensor, expected: torch.Tensor) -> bool:
        """Say whether the first token that differs is one of two that are equally likely, but for rounding."""
        at = int((tokens[: len(expected)] != expected[: len(tokens)]).int().argmax())
        with torch.no_grad():
            logits = self._local(expected[None, :at], logits_to_keep=1).logits[0, -1]
        return bool((logits[expected[at]] - logits[tokens[at]]).abs() < ROUNDING)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Any]:
    return tmp_path / "model", save(tmp_path / "model", "llama", LLAMA, seed=3)


def held(home: Path) -> Totals:
    """Add up what the ledger of a home holds."""
    with Ledger.open_to_read(home / LEDGER) as ledger:
        records = [signed.record for own in ledger.owners() for signed in ledger.newest(own)]
    totals: Totals = Counter()
    for record in records:
        if isinstance(record, Receipt):
            totals[record.provider, record.consumer, record.work_kind.name.lower()] += record.amount
    return totals


def told(join: str, home: Path) -> tuple[Totals, str]:
    """Ask a node that has nothing of its own what the DHT says, signatures checked; return what it says beside, too."""
    done = run_command(["receipts", "--join", join, "--json"], home, timeout_s=300.0)
    assert done.returncode == 0, done.stderr
    totals: Totals = Counter()
    for line in done.stdout.splitlines():
        receipt = json.loads(line)
        totals[receipt["provider"], receipt["consumer"], receipt["kind"]] += receipt["amount"]
    return totals, done.stderr


def working(model: tuple[Path, Any], tmp_path: Path, work_s: float, join: str, fleet: Fleet) -> Iterator[Worker]:
    directory, local = model
    until_s = time.monotonic() + work_s
    workers = [Worker(directory, join, tmp_path / f"client{seed}", local, seed, until_s) for seed in range(NUM_CLIENTS)]
    for worker in workers:
        worker.start()
    time.sleep(work_s / 2)
    fleet.start(*SPANS[:NUM_LATE])
    for worker in workers:
        worker.join(work_s + 120.0)
        worker.model.close()
        yield worker


@pytest.mark.parametrize(
    ("work_s", "epoch_s"),
    [
        pytest.param(40, 15, marks=pytest.mark.timeout(300)),
        pytest.param(3600, 300, marks=[pytest.mark.full, pytest.mark.timeout(4500)]),
    ],
)
def test_a_newcomer_says_from_the_dht_alone_who_did_how_much_for_whom(
    model: tuple[Path, Any], work_s: int, epoch_s: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with (
        bootstrap(tmp_path / "bootstrap", "--epoch", str(epoch_s)) as (_, join),
        Fleet(model[0], join, tmp_path / "fleet", "--num-threads", "1") as fleet,
    ):
        fleet.start(*SPANS, *SPANS)
        workers = list(working(model, tmp_path, work_s, join, fleet))
        assert all(worker.has_ended for worker in workers)
        assert not [failure for worker in workers for failure in worker.failures]
        signed = sum((held(worker.home) for worker in workers), Counter())
        until_s = time.monotonic() + PUBLISHED_WITHIN_S
        while (seen := told(join, tmp_path / "newcomer"))[0] != signed and time.monotonic() < until_s:
            time.sleep(1.0)
        with capsys.disabled():
            print(f"\n{sum(worker.num_answers for worker in workers)} answers, {signed.total()} tokens; {seen[1]}")
        assert seen[0] == signed
        assert len({consumer for _, consumer, _ in signed}) == NUM_CLIENTS
