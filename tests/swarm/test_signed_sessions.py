"""Through real servers, every way of generating ends in receipts that both sides hold, and that say what was done."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dht.receipts.ledger import Ledger
from dht.work import Receipt, Slot, WorkKind
from node import AutoDistributedModelForCausalLM
from node.config import LEDGER
from tests.churn_kit import AtTokens, Fleet
from tests.processes import bootstrap
from tests.swarm.models import LLAMA, SPANS, save

PROMPT = 40
"""Tokens: prefill."""
NEW_TOKENS = 24
UNSIGNED = 16
"""Tokens after which a consumer without history is asked for signatures."""
SIGNED_WITHIN_S = 10.0
PAUSE_S = 0.4
"""Between tokens that are to come slowly."""
RESTS_AFTER_S = 1.0
"""So long after its last step a session is at rest, and asked for signatures whatever the epoch."""


class Swarm:
    """Three stages, one more server of each span, and clients with a home of their own each."""

    def __init__(self, directory: Path, join: str, local: Any, fleet: Fleet) -> None:
        self.directory, self.join, self.local, self.fleet = directory, join, local, fleet

    def connect(self, home: Path, **options: Any) -> Any:
        """Make a client that keeps its identity and its ledger in ``home``."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("EFEDLLM_HOME", str(home))
            return AutoDistributedModelForCausalLM.from_pretrained(str(self.directory), join=self.join, **options)

    def held_by_servers(self, consumers: Sequence[str]) -> dict[Slot, Receipt]:
        """Read what the servers' ledgers hold of some consumers."""
        held = [read(server.home) for server in self.fleet.servers.values()]
        return {slot: receipt for one in held for slot, receipt in one.items() if slot.consumer in consumers}

    def agreed(self, home: Path) -> dict[Slot, Receipt]:
        """Return the receipts of a client that has left, once the servers hold the same ones."""
        own = read(home)
        consumers = {slot.consumer for slot in own}
        until_s = time.monotonic() + SIGNED_WITHIN_S
        while (held := self.held_by_servers(sorted(consumers))) != own and time.monotonic() < until_s:
            time.sleep(0.1)
        assert held == own
        assert own
        return own


def read(home: Path) -> dict[Slot, Receipt]:
    """Read the newest receipts in the ledger of a home, signatures checked."""
    with Ledger.open_to_read(home / LEDGER) as ledger:
        records = [signed.record for own in ledger.owners() for signed in ledger.newest(own)]
        return {record.slot: record for record in records if isinstance(record, Receipt)}


def amounts(receipts: dict[Slot, Receipt]) -> dict[str, Counter[WorkKind]]:
    """Add up tokens by provider and kind of work."""
    totals: dict[str, Counter[WorkKind]] = {}
    for slot, receipt in receipts.items():
        totals.setdefault(slot.provider, Counter())[slot.work_kind] += receipt.amount
    return totals


def prompt(rows: int = 1) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def generate(model: Any, **settings: Any) -> torch.Tensor:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **settings}
    tokens: torch.Tensor = model.generate(**prompt(), **settings)
    return tokens


@pytest.fixture(scope="module")
def swarm(join: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    directory = tmp_path_factory.mktemp("model") / "signed"
    local = save(directory, "llama", LLAMA, seed=11)
    with Fleet(directory, join, tmp_path_factory.mktemp("fleet"), "--num-threads", "1") as fleet:
        fleet.start(*SPANS, *SPANS)
        yield Swarm(directory, join, local, fleet)


WAYS = {
    "greedy": ({}, {}),
    "sampled": ({}, {"do_sample": True}),
    "beams": ({}, {"num_beams": 3}),
    "prompt lookup": ({}, {"prompt_lookup_num_tokens": 4}),
    "several sequences": ({}, {"do_sample": True, "num_return_sequences": 3}),
    "without weights": ({"thin": True}, {}),
    "sampled by the servers": ({"thin": True, "server_sampling": True}, {}),
}
"""How a client is made, and how it generates."""


@pytest.mark.parametrize("way", WAYS)
def test_both_sides_hold_the_same_receipts_for_every_way_of_generating(swarm: Swarm, way: str, tmp_path: Path):
    options, settings = WAYS[way]
    with swarm.connect(tmp_path, **options) as remote:
        generate(remote, **settings)
    totals = amounts(swarm.agreed(tmp_path))
    assert len(totals) == len(SPANS)
    first, *others = totals.values()
    assert all(other == first for other in others)  # Every stage is given the same steps.
    if "num_beams" not in settings and "num_return_sequences" not in settings:
        assert first[WorkKind.PREFILL] == PROMPT
    if way in ("greedy", "sampled", "without weights", "sampled by the servers"):
        assert first[WorkKind.DECODE] == NEW_TOKENS - 1


def test_sessions_at_the_same_time_have_lanes_of_their_own_and_the_next_one_takes_one_of_them(
    swarm: Swarm, tmp_path: Path
):
    with swarm.connect(tmp_path) as remote:
        threads = [threading.Thread(target=generate, args=(remote,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        generate(remote)
    held = swarm.agreed(tmp_path)
    for total in amounts(held).values():
        assert total[WorkKind.DECODE] <= 4 * (NEW_TOKENS - 1)
    assert sum(total[WorkKind.PREFILL] for total in amounts(held).values()) == 4 * PROMPT * len(SPANS)
    assert sum(receipt.sessions for slot, receipt in held.items() if slot.work_kind is WorkKind.PREFILL) == 4 * 3
    lanes = {(slot.provider, slot.lane) for slot in held}
    assert len(lanes) <= 3 * len(SPANS)


@pytest.mark.parametrize("stage", range(3))
def test_a_stage_that_vanishes_leaves_little_unsigned_and_its_heir_is_paid_for_the_history(
    swarm: Swarm, stage: int, tmp_path: Path
):
    at = 14
    with swarm.connect(tmp_path) as remote:
        repairs: list[Any] = []
        remote._connector.on_repaired = repairs.append
        lost = []

        def kill() -> None:
            (chain,) = remote._connector._chains
            lost.append(chain.route.stages[stage].peer_id)
            swarm.fleet.kill(lost[0])

        tokens = generate(remote, streamer=AtTokens({at: kill}))
        assert torch.equal(tokens, generate(swarm.local))
        assert len(repairs) == 1
    totals = amounts(read(tmp_path))
    swarm.fleet.restart(*lost)
    swarm.agreed(tmp_path)  # What the one that vanished had signed for survives it.
    whole = Counter({WorkKind.PREFILL: PROMPT, WorkKind.DECODE: NEW_TOKENS - 1})
    assert sum(total == whole for total in totals.values()) == 2
    (heir,) = [peer for peer, total in totals.items() if total != whole and peer not in lost]
    assert totals[heir].total() == whole.total()
    assert totals[heir][WorkKind.PREFILL] >= PROMPT + at - 2
    served = PROMPT + at
    assert served - UNSIGNED <= totals[lost[0]].total() <= served


def test_a_stage_that_leaves_is_signed_for_to_the_last_token(swarm: Swarm, tmp_path: Path):
    with swarm.connect(tmp_path) as remote:
        repairs: list[Any] = []
        remote._connector.on_repaired = repairs.append
        left = []

        def leave() -> None:
            (chain,) = remote._connector._chains
            left.append(chain.route.stages[1].peer_id)
            swarm.fleet.servers[left[0]].signal(signal.SIGTERM)

        settings = {"max_new_tokens": 120, "min_new_tokens": 120}
        tokens = generate(remote, streamer=AtTokens({5: leave}), **settings)
        assert torch.equal(tokens, generate(swarm.local, **settings))
        assert [repair.were_leaving for repair in repairs] == [True]
    swarm.fleet.restart(*left)
    totals = amounts(swarm.agreed(tmp_path))
    whole = Counter({WorkKind.PREFILL: PROMPT, WorkKind.DECODE: 119})
    assert sum(total == whole for total in totals.values()) == 2
    (heir,) = [peer for peer, total in totals.items() if total != whole and peer not in left]
    assert totals[left[0]][WorkKind.DECODE] + totals[heir][WorkKind.DECODE] == whole[WorkKind.DECODE]
    assert totals[heir][WorkKind.PREFILL] == totals[left[0]].total()


class OverTheEnd:
    """A streamer: lets the tokens behind the first one come slowly, half of them before the end of an epoch."""

    def __init__(self, home: Path, epoch_s: int, num_tokens: int) -> None:
        self.signed: list[Counter[int]] = []
        """At each token, what was signed for of decoding, by epoch."""
        self.longest_pause_s = 0.0
        self._home, self._epoch_s, self._num_tokens = home, epoch_s, num_tokens
        self._num_put, self._last_s = 0, 0.0

    def put(self, _: torch.Tensor) -> None:
        """Wait before the next step."""
        self._num_put += 1
        if self._num_put == 1:  # the prompt
            return
        if self._num_put == 2:
            before_s = PAUSE_S * self._num_tokens / 2
            time.sleep((-time.time() - before_s) % self._epoch_s)
        else:
            self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - self._last_s)
        self.signed.append(decoded(self._home))
        self._last_s = time.monotonic()
        time.sleep(PAUSE_S)

    def end(self) -> None:
        """Do nothing more."""


def decoded(home: Path) -> Counter[int]:
    """Return the tokens that were signed for as decoding, by epoch."""
    sums: Counter[int] = Counter()
    for slot, receipt in read(home).items():
        sums[slot.epoch] += receipt.amount * (slot.work_kind is WorkKind.DECODE)
    return +sums


def test_what_was_done_is_signed_for_when_its_epoch_ends_though_the_session_goes_on(swarm: Swarm, tmp_path: Path):
    epoch_s, num_tokens = 10, 14
    assert num_tokens < UNSIGNED - 1, "or the number of tokens asks for signatures"
    with (
        bootstrap(tmp_path / "bootstrap", "--epoch", str(epoch_s)) as (_, join),
        Fleet(swarm.directory, join, tmp_path / "fleet", "--num-threads", "1") as fleet,
    ):
        fleet.start((0, 4))
        short = Swarm(swarm.directory, join, swarm.local, fleet)
        for attempt in range(3):
            home = tmp_path / f"client-{attempt}"
            with short.connect(home) as remote:
                told = OverTheEnd(home, epoch_s, num_tokens)
                generate(remote, max_new_tokens=num_tokens + 1, min_new_tokens=num_tokens + 1, streamer=told)
            if told.longest_pause_s < RESTS_AFTER_S:
                break  # On a slower machine it may have come to rest.
        assert told.longest_pause_s < RESTS_AFTER_S
        assert told.signed[-1], "nothing has been signed for when the epoch ended"
        ended = min(told.signed[-1])
        assert told.signed[0] == Counter()
        assert 0 < told.signed[-1][ended] < num_tokens
        short.agreed(home)
        assert decoded(home)[ended] == told.signed[-1][ended], "all of it, at once"
        assert decoded(home).total() == num_tokens
