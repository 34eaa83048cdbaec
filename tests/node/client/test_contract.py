"""A client's side of its sessions: who is late by which clock, whom it notes, and what it keeps to run again."""

import copy
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dht.errors import LedgerNotWritten
from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.work import Receipt, Slot, WorkKind
from node.agreement.exposure import CHECKPOINT_TIMEOUT_S
from node.client.contract import Handed, SessionContract
from node.client.route import Stage
from node.errors import CannotSign, LocalError, Refused, StageAtFault
from node.step_log import StepLog
from node.wire import Open, Result, Step
from tests.node.serve.contracted import HIDDEN, MANIFEST, RULES, Dealt, contracts, dealings

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


async def test_a_stage_that_asks_before_a_long_prompt_is_answered_is_not_late_afterwards(dealt, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("node.client.contract.time", clock)
    shape, payload = (1, 200, HIDDEN), bytes(3200)
    step = dealt.ours.sent(Step(dealt.session, 0, shape, "float32", payload))
    dealt.theirs.take(step)
    dealt.theirs.give(step, (memoryview(payload), shape), "float32")
    dealt.theirs.count(step, len(payload), 0)
    await dealt.theirs.check()
    assert dealt.theirs._account.is_settled
    dealt.ours.answered(step, Result(dealt.session, 0, shape, "float32", payload))
    clock.steady_s += CHECKPOINT_TIMEOUT_S + 0.1
    assert dealt.ours.overdue() == []


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


async def run(dealt, position, *, came_as=None, then=b""):
    """Run a step as both sides do, and change the payloads where they lie once they have been handed over."""
    payload, shape = bytearray(b"%16d" % position), (1, 1, HIDDEN)
    step = dealt.ours.sent(Step(dealt.session, position, shape, "float32", payload))
    gave = bytes(payload)
    dealt.theirs.take(replace(step, payload=gave))
    dealt.theirs.give(step, (memoryview(gave), shape), "float32")
    dealt.theirs.count(step, len(gave), 0)
    came = bytearray(came_as or gave)
    dealt.ours.answered(step, Result(dealt.session, position, shape, "float32", memoryview(came)))
    payload[: len(then)], came[: len(then)] = then, then
    await dealt.theirs.check()


async def test_what_is_computed_in_place_with_a_result_later_does_not_count(dealt):
    for position in range(130):
        await run(dealt, position, then=b"changed")
    await dealt.close()
    assert dealt.ours._check.is_complete


@pytest.mark.parametrize("position", [3, 62, 63, 64, 100])
async def test_a_result_that_is_not_what_the_stage_commits_to_is_found_with_its_chunk(dealt, position):
    async def run_all():
        for each in range(130):
            await run(dealt, each, came_as=b"something else.." if each == position else None)

    with pytest.raises(StageAtFault, match="gave other bytes"):
        await run_all()
    assert dealt.ours.num_sent <= position // 64 * 64 + 64 + 17


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


def breaks(monkeypatch, ledger):
    """Let a ledger write nothing any more."""

    def full(*_):
        raise LedgerNotWritten("The disk is full; free some space.")

    monkeypatch.setattr(ledger, "reserve_in_memory", lambda *_: None)
    monkeypatch.setattr(ledger, "reserve", full)


async def test_a_client_whose_ledger_fails_says_that_it_cannot_sign_and_blames_nobody(dealt, ledger, monkeypatch):
    breaks(monkeypatch, ledger)
    for _ in range(15):
        await dealt.step()
    with pytest.raises(CannotSign, match=r"free some space. Or open the model with receipts=False"):
        await dealt.step()


async def test_a_ledger_that_fails_for_a_moment_puts_no_server_at_fault(dealt, monkeypatch):
    for _ in range(3):
        await dealt.step(40)
    await dealt.step()
    with monkeypatch.context() as moment:
        breaks(moment, dealt.contracts.desk._ledger.ledger)
        with pytest.raises(Refused):
            await dealt.theirs.check(is_last=True)
    await dealt.close()
    assert dealt.theirs._account.is_settled


async def test_a_client_signs_with_no_number_that_its_lane_was_signed_with_before(dealt, ledger, monkeypatch):
    signed = []
    sign = dealt.dealings._identity.sign
    account = dealt.ours._parties[0].account
    monkeypatch.setattr(account, "_sign", lambda domain, body: (signed.append(body), sign(domain, body))[1])
    await dealt.step()
    (deal,) = [party.deal for party in dealt.ours._parties]
    epoch = dealt.dealings.rules.epoch_of(time.time())
    # Another process of this home has the same lane, as no lane drawn at random is had twice.
    slot = Slot(SERVER.peer_id, CLIENT.peer_id, epoch, deal.lane.number, WorkKind.DECODE)
    assert ledger.reserve(CLIENT.peer_id, slot, 5) == 5
    dealt.ours.seal()
    with pytest.raises(LocalError, match="Number 1 of that lane was signed with before"):
        await dealt.theirs.check(is_last=True)
    assert signed == []


async def test_a_stage_whose_place_another_has_taken_gets_its_last_signatures(dealt, ledger):
    for _ in range(21):
        await dealt.step()
    (party,), frames = dealt.ours._parties, []
    heir = dealt.dealings.offer(dealt.session, MANIFEST, "float32", Stage(CLIENT.peer_id, 0, 2, ()), 1024)
    dealt.ours.replaced(0, 0, [heir], Handed(21, 1, 21, ()))

    async def hear(frame):
        frames.append(frame)

    dealt.theirs._tell = hear
    await dealt.theirs.check(is_last=True)
    dealt.theirs.cosigned(dealt.ours.last_words(party.deal, frames[0].body))
    assert dealt.theirs._account.is_settled
    dealt.ours.let_go(party.deal)
    await dealt.dealings.drained()
    assert ledger.unsigned(CLIENT.peer_id) == []
    assert sum(signed.record.amount for signed in ledger.newest(CLIENT.peer_id)) == 21


async def test_who_leaves_without_asking_for_its_last_signatures_is_noted(dealt, ledger):
    for _ in range(21):
        await dealt.step()
    (party,) = dealt.ours._parties
    heir = dealt.dealings.offer(dealt.session, MANIFEST, "float32", Stage(CLIENT.peer_id, 0, 2, ()), 1024)
    dealt.ours.replaced(0, 0, [heir], Handed(21, 1, 21, ()))
    dealt.ours.let_go(party.deal)
    await dealt.dealings.drained()
    (end,) = ledger.unsigned(CLIENT.peer_id)
    assert (end.peer, end.amount) == (SERVER.peer_id, 5)


@pytest.mark.parametrize("num_late", [0, 1, 3])
async def test_an_heir_is_signed_for_though_results_come_while_it_is_opened(num_late):
    lost, heir, behind = (Identity.ephemeral() for _ in range(3))
    tokens, session = 64, bytes(range(16))
    with Ledger.open(None) as theirs, Ledger.open(None) as own:
        ours, frames = dealings(CLIENT, own, time.time), []

        def deal_with(server, start, end):
            stage = Stage(server.peer_id, start, end, (), weights="float32")
            return ours.offer(session, MANIFEST, "float32", stage, 1024)

        async def hear(frame):
            frames.append(frame)

        deals = [deal_with(lost, 0, 2), deal_with(behind, 2, 4)]
        contract = SessionContract(ours, session, "float32", HIDDEN, None, deals)
        log, waiting = StepLog(session, "float32", HIDDEN, 1, 1024), []
        for number in range(4):
            shape = (1, tokens, HIDDEN)
            waiting.append(contract.sent(Step(session, number * tokens, shape, "float32", bytes(16 * tokens))))
            log.append(waiting[-1])

        def answer():
            step = waiting.pop(0)
            contract.answered(step, Result(session, step.position, step.shape, "float32", bytes(16 * tokens)))

        answer()
        handed, segment, sent = Handed(1, 1, tokens, tuple(waiting)), contract.next_segment, contract.num_sent
        new = deal_with(heir, 0, 2)
        for _ in range(num_late):
            answer()
        contract.replaced(0, 0, [new], handed)
        opened = Open(
            session=session, manifest=MANIFEST, start=0, end=2, batch=1, left_padding=(), max_length=1024,
            codec="float32", previous=CLIENT.peer_id, next=behind.peer_id, next_addresses=(), steps=handed.answered,
            offer=new.body, offer_signature=new.signature, segment=segment, sent=sent,
        )  # fmt: skip
        agreed = await contracts(heir, theirs, time.time).begin(opened, CLIENT.peer_id, "float32", hear)
        for step in log.replay(handed.answered, 1):
            contract.resent(step)
            payload = bytes(step.payload)
            agreed.take(replace(step, payload=payload))
            agreed.give(step, (memoryview(payload), step.shape), "float32")
            agreed.count(step, 0 if step.replay else len(payload), 0)
        await agreed.check(is_last=True)
        assert frames
        for frame in frames:
            answered, other = contract.checkpoint(0, frame.body)
            assert answered is not None
            assert other is None
        await ours.drained()


async def test_a_client_that_starts_again_goes_on_in_its_lane_and_is_signed_for(tmp_path):
    with Ledger.open(tmp_path / "theirs") as theirs:
        server = contracts(SERVER, theirs, time.time)
        lanes = []
        for number in range(3):
            with Ledger.open(tmp_path / "own") as own:
                ours = dealings(CLIENT, own, time.time)
                await ours.take_lanes()
                dealt = await Dealt(server, ours, CLIENT, SERVER).open(bytes([number]) * 16)
                lanes.append(dealt.ours._parties[0].deal.lane.number)
                for _ in range(20):
                    await dealt.step()
                await dealt.close()
                await ours.close()
                assert own.unsigned(CLIENT.peer_id) == []
        (signed,) = theirs.newest(SERVER.peer_id)
    assert lanes == [lanes[0]] * 3
    assert (signed.record.sessions, signed.record.amount) == (3, 60)


async def test_a_client_whose_ledger_was_put_back_gives_an_evil_server_nothing_to_contradict(tmp_path, monkeypatch):
    monkeypatch.setattr("dht.receipts.continuity.SETTLING_S", 1)
    home, backup, signed = tmp_path / "own", tmp_path / "backup", list[Receipt]()
    server = contracts(SERVER, Ledger.open(None), time.time)
    server.reserve = lambda slot, seq: seq  # Evil: it counts from wherever it likes.

    async def work(session, tokens):
        with Ledger.open(home) as own:
            ours = dealings(CLIENT, own, time.time)
            await ours.take_lanes()
            dealt = await Dealt(server, ours, CLIENT, SERVER).open(session)
            await dealt.step(tokens)
            await dealt.close()
            await ours.close()
            signed.extend(signed.record for signed in own.newest(CLIENT.peer_id))

    await work(bytes(16), 3)
    shutil.copy(home, backup)
    as_it_was = copy.deepcopy(server._lanes)
    await work(b"1" * 16, 5)
    time.sleep(2.1)  # Times in the ledger are whole seconds.
    shutil.copy(backup, home)
    server._lanes = as_it_was
    await work(b"2" * 16, 7)
    said = {(receipt.slot, receipt.seq, receipt.to_body()) for receipt in signed}
    assert len({(slot, seq) for slot, seq, _ in said}) == len(said) == 3
    assert len({slot.lane for slot, *_ in said}) == 2


async def test_the_lane_of_a_client_that_was_killed_is_not_taken_again(tmp_path):
    with Ledger.open(tmp_path / "theirs") as theirs, Ledger.open(tmp_path / "own") as own:
        server = contracts(SERVER, theirs, time.time)
        killed = dealings(CLIENT, own, time.time)
        first = await Dealt(server, killed, CLIENT, SERVER).open()
        lane = first.ours._parties[0].deal.lane.number
        await first.step()
        await first.close()
        await killed.close()
        killed = dealings(CLIENT, own, time.time)
        await killed.take_lanes()  # It is killed in its second session.
        ours = dealings(CLIENT, own, time.time)
        await ours.take_lanes()
        second = await Dealt(server, ours, CLIENT, SERVER).open(bytes(range(16)))
        assert second.ours._parties[0].deal.lane.number != lane


async def test_a_session_that_is_closed_twice_is_noted_once_and_its_lane_given_back_once(dealt, ledger):
    await dealt.step()
    dealt.ours.close()
    dealt.ours.close()
    await dealt.dealings.drained()
    assert len(ledger.unsigned(CLIENT.peer_id)) == 1
    signed = await Dealt(dealt.contracts, dealt.dealings, CLIENT, SERVER).open(bytes(range(16)))
    await signed.step()
    await signed.close()
    signed.ours.close()
    assert len(list(dealt.dealings._lanes.free())) == 1


async def test_who_did_not_sign_is_remembered_by_later_clients_of_the_same_identity_for_ten_epochs(tmp_path):
    now_s = [80_000.5 * RULES.epoch_s]
    with Ledger.open(tmp_path / "own", clock=lambda: now_s[0]) as own:
        first = dealings(CLIENT, own, lambda: now_s[0])
        first.distrust(SERVER.peer_id)
        await first.drained()
    with Ledger.open(tmp_path / "own", clock=lambda: now_s[0]) as own:
        now_s[0] += 9 * RULES.epoch_s
        assert await dealings(CLIENT, own, lambda: now_s[0]).distrusted() == {SERVER.peer_id: RULES.epoch_s}
        assert await dealings(SERVER, own, lambda: now_s[0]).distrusted() == {}, "it is another's memory"
        now_s[0] += 1 + RULES.epoch_s
        assert await dealings(CLIENT, own, lambda: now_s[0]).distrusted() == {}
