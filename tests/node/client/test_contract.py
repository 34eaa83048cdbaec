"""A client's side of its sessions: who is late by which clock, whom it notes, and what it keeps to run again."""

import time
from types import SimpleNamespace

import pytest

from dht.identity import Identity
from dht.receipts.ledger import Ledger
from node.agreement.exposure import CHECKPOINT_TIMEOUT_S
from node.wire import Result, Step
from tests.node.serve.contracted import HIDDEN, Dealt, contracts, dealings

SERVER, CLIENT = Identity.ephemeral(), Identity.ephemeral()


@pytest.fixture
def ledger():
    with Ledger.open(None) as ledger:
        yield ledger


@pytest.fixture
async def dealt(ledger):
    with Ledger.open(None) as held:
        dealt = Dealt(contracts(SERVER, held, time.time), dealings(CLIENT, ledger, time.time), CLIENT, SERVER)
        yield await dealt.open()


class Clock(SimpleNamespace):
    """The ``time`` module with clocks that stand still until they are set."""

    def __init__(self):
        super().__init__(wall_s=time.time(), steady_s=1000.0)
        self.time, self.monotonic = lambda: self.wall_s, lambda: self.steady_s


async def test_a_wall_clock_that_jumps_makes_no_stage_late(dealt, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("node.client.contract.time", clock)
    for position in range(64):
        step = dealt.ours.sent(Step(dealt.session, position, (1, 1, HIDDEN), "float32", bytes(16)))
        dealt.ours.answered(step, Result(dealt.session, position, (1, 1, HIDDEN), "float32", bytes(16)))
    clock.wall_s += 3600
    assert dealt.ours.overdue() == []
    clock.wall_s -= 7200
    clock.steady_s += CHECKPOINT_TIMEOUT_S + 0.1
    assert dealt.ours.overdue() == [0]


async def test_who_has_not_asked_for_a_signature_is_noted_when_the_session_ends(dealt, ledger):
    for _ in range(5):
        await dealt.step()
    dealt.ours.close()
    await dealt.dealings.drained()
    (end,) = ledger.unsigned(CLIENT.peer_id)
    assert (end.peer, end.peer_provides, end.amount) == (SERVER.peer_id, True, 5)


async def test_nobody_is_noted_where_all_is_signed_for(dealt, ledger):
    for _ in range(20):
        await dealt.step()
    await dealt.close()
    assert ledger.unsigned(CLIENT.peer_id) == []


async def test_what_is_signed_for_is_not_kept_and_what_is_not_is(dealt):
    for _ in range(20):
        await dealt.step()
    kept = dealt.ours.unsigned(0)
    assert [entry.number for entry in kept] == [17, 18, 19, 20]
    assert [entry.position for entry in kept] == [16, 17, 18, 19]


async def test_what_a_stage_at_fault_signed_for_last_is_in_doubt_too_and_no_more(dealt):
    for _ in range(200):
        await dealt.step()
    assert [entry.number for entry in dealt.ours.unsigned(0, is_at_fault=True)] == list(range(129, 201))
    assert len(dealt.ours._recent.since(0)) == 72, "the rest is forgotten"


async def test_lanes_of_a_server_that_has_started_anew_are_not_offered_again(dealt):
    first = dealt.ours._parties[0].deal
    await dealt.step()
    await dealt.close()
    again = await Dealt(dealt.contracts, dealt.dealings, CLIENT, SERVER).open()
    assert again.ours._parties[0].deal.lane is first.lane
    await again.step()
    await again.close()
    dealt.dealings.forget_lanes(SERVER.peer_id)
    new = await Dealt(dealt.contracts, dealt.dealings, CLIENT, SERVER).open()
    assert new.ours._parties[0].deal.lane is not first.lane
