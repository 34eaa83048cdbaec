"""What audits make of stages that are gone, busy, silent or false, and that they never keep the client from leaving."""

import asyncio
import contextlib
import threading
import time
from hashlib import sha256
from types import SimpleNamespace

import pytest

from dht.errors import PeerUnreachable
from dht.membership.members import Stream
from node.check.patience import look
from node.client import auditor as auditor_module
from node.client import reveal_call
from node.client.audit_book import MAX_IN_VAIN, AuditResult, Measured, Outcome, Verdict
from node.client.audit_plan import DueAudit
from node.client.audit_trail import Tile
from node.client.auditor import MAX_WAITING, AuditedSession, AuditedStage, Auditor
from node.client.route import Stage
from node.commitment.chunks import Leaf
from node.step_log import StepLog
from node.transport import FrameStream
from node.wire import MAX_REVEALS, Opening, Refuse, Step

SESSION, WIDTH, LENGTH = bytes(range(16)), 4, 128
BEFORE, AUDITED = "before", "audited"


def log_of(fill, length=LENGTH, width=WIDTH):
    log = StepLog(SESSION, "float32", width, 1, 2**10)
    log.append(Step(SESSION, 0, (1, length, width), "float32", bytes([fill]) * (4 * width * length)))
    return log


def digest(log, first, end):
    return sha256(log.piece(first, end - first)[2]).digest()


class Stages:
    """The two stages of a session on loopback: each opens a log, or does what a test says instead."""

    def __init__(self):
        self.logs = {BEFORE: log_of(1), AUDITED: log_of(2)}
        self.does = {}
        self.asked, self.serving = [], set()
        self.results, self.is_whole = [], True
        self.auditor = Auditor(self.dial, self.results.append, 1000, lambda opening: Verdict(Outcome.PASS))
        self.session = AuditedSession(
            SESSION, bytes(32), "float32", WIDTH, (), None, lambda due: self.is_whole, log=log_of(0)
        )
        deal = SimpleNamespace(offer=SimpleNamespace(profile=bytes(32)), body=b"offer", signature=bytes(64))
        self.session.stages = {peer: AuditedStage(Stage(peer, 0, 1, ()), "float32", deal) for peer in (BEFORE, AUDITED)}

    async def dial(self, peer_id, protocol, *, addresses=(), timeout_s=5.0):
        del protocol, addresses, timeout_s
        if peer_id == self.does.get("unreachable"):
            raise PeerUnreachable("nobody answers")

        async def serve(reader, writer):
            self.serving.add(asyncio.current_task())
            frames = FrameStream(Stream("client", reader, writer))
            with contextlib.suppress(Exception):
                await self._serve(peer_id, frames)
            await frames.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        server.close()
        return Stream(peer_id, reader, writer)

    async def _serve(self, peer_id, frames):
        asked = await frames.receive()
        self.asked.append((peer_id, asked.first, asked.end))
        if peer_id in self.does:
            await self.does[peer_id](frames, asked)
            return
        shape, codec, payload = self.logs[peer_id].piece(asked.first, asked.end - asked.first)
        await frames.send(Opening(SESSION, asked.first, shape, codec, payload))

    def due(self, index=1, previous=BEFORE):
        tiles = tuple(Tile(0, number, 64 * number, 1, 64 * number + 64, [[64, 1]]) for number in range(index + 1))
        inputs = self.logs[previous] if previous else self.session.log
        taken = tuple(digest(inputs, tile.first, tile.end) for tile in tiles)
        given = digest(self.logs[AUDITED], 64 * index, 64 * index + 64)
        leaf = Leaf(0, index, 64 * index, bytes(32), taken[-1], given)
        return DueAudit(1, AUDITED, previous, leaf, tiles, taken, (leaf,), b"receipt", None)

    async def audit(self, *due):
        self.auditor.begin(due, self.session)
        async with asyncio.timeout(20):
            while self.auditor._waiting:
                await asyncio.sleep(0.005)
        return self.results[-1]

    def answers(self, frame):
        """Answer with a frame of a reveal's making."""

        async def answer(frames, asked):
            await frames.send(frame(asked))

        return answer


@pytest.fixture
async def stages(monkeypatch):
    monkeypatch.setattr(auditor_module, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(reveal_call, "PIECE_S", 0.3)
    made = Stages()
    yield made
    await made.auditor.close(0.0)
    await asyncio.gather(*made.serving, return_exceptions=True)


@pytest.mark.parametrize("previous", [BEFORE, ""])
async def test_what_is_judged_is_what_was_signed(stages, previous):
    judged = []
    stages.auditor.judge = lambda opening: judged.append(opening) or Verdict(Outcome.PASS, "as it should be")
    result = await stages.audit(stages.due(previous=previous))
    assert (result.outcome, result.why, result.owner) == (Outcome.PASS, "as it should be", "")
    (opening,) = judged
    assert opening.inputs.payload == (stages.logs[BEFORE] if previous else stages.session.log).piece(0, 128)[2]
    assert opening.outputs[0].payload == stages.logs[AUDITED].piece(64, 64)[2]
    assert stages.asked == ([(BEFORE, 0, 128)] if previous else []) + [(AUDITED, 64, 128)]


async def test_inputs_that_were_opened_for_one_chunk_are_not_asked_for_again(stages):
    await stages.audit(stages.due(0), stages.due(1))
    assert [entry for entry in stages.asked if entry[0] == BEFORE] == [(BEFORE, 0, 64), (BEFORE, 64, 128)]
    assert [result.outcome for result in stages.results] == [Outcome.PASS] * 2


@pytest.mark.parametrize("liar", [BEFORE, AUDITED])
async def test_whoever_opens_other_bytes_than_were_signed_for_is_named_and_nothing_is_judged(stages, liar):
    due = stages.due()
    stages.auditor.judge = None
    stages.logs[liar] = log_of(9)
    result = await stages.audit(due)
    assert (result.outcome, result.owner, result.opening) == (Outcome.FAIL, liar, None)
    assert "opens other bytes" in result.why


async def test_what_came_out_of_the_last_stage_must_be_what_it_signed_for(stages):
    given = SimpleNamespace(payload=b"other")
    due = stages.due()
    due = DueAudit(*(getattr(due, name) for name in due.__slots__ if name != "outputs"), (given,))
    result = await stages.audit(due)
    assert (result.outcome, result.owner) == (Outcome.FAIL, AUDITED)


async def test_a_judge_names_the_stage_and_one_that_raises_nobody(stages):
    stages.auditor.judge = lambda _: Verdict(Outcome.FAIL, "off by 3")
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner, result.why) == (Outcome.FAIL, AUDITED, "off by 3")
    assert result.opening is not None

    def broken(_):
        raise RuntimeError("no weights")

    stages.auditor.judge = broken
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.INCONCLUSIVE, "")


async def test_others_are_asked_where_there_is_no_judge_or_it_cannot_run_it_again_and_nowhere_else(stages):
    measured = Measured(1, 2, 3, bytes(32))
    cannot, can = Verdict(Outcome.INCONCLUSIVE), Verdict(Outcome.INCONCLUSIVE, "", measured)
    asked = []

    async def ask(opening):
        asked.append(opening)
        return Verdict(Outcome.PASS, "they say", measured)

    stages.auditor.ask = ask
    for judge, outcome, num_asked in (
        (None, Outcome.PASS, 1),
        (lambda _: cannot, Outcome.PASS, 2),
        (lambda _: can, Outcome.INCONCLUSIVE, 2),
        (lambda _: Verdict(Outcome.FAIL, "off by 3", measured), Outcome.FAIL, 2),
    ):
        stages.auditor.judge = judge
        assert (await stages.audit(stages.due())).outcome is outcome
        assert len(asked) == num_asked


async def test_a_judge_ends_when_the_client_leaves(stages):
    begun, ended = threading.Event(), threading.Event()

    def judge(_):
        begun.set()
        end_s = time.monotonic() + 20
        try:
            while time.monotonic() < end_s:
                look()
                time.sleep(0.01)
        finally:
            ended.set()

    stages.auditor.judge = judge
    stages.auditor.begin([stages.due()], stages.session)
    await asyncio.to_thread(begun.wait, 5)
    await stages.auditor.close(0.1)
    assert await asyncio.to_thread(ended.wait, 1)
    assert [result.why for result in stages.results] == ["the client has left"]


async def test_without_a_judge_what_is_opened_as_signed_proves_nothing_more(stages):
    stages.auditor.judge = None
    assert (await stages.audit(stages.due())).outcome is Outcome.INCONCLUSIVE


def refusal(code):
    return lambda asked: Refuse(asked.session, code, "No.")


async def hang_up(frames, asked):
    """End the stream."""


async def silence(frames, asked):
    await asyncio.sleep(0.5)


WRONG = [
    lambda asked: Opening(SESSION, asked.first + 1, (1, 64, WIDTH), "float32", bytes(256 * WIDTH)),
    lambda asked: Opening(SESSION, asked.first, (1, 65, WIDTH), "float32", bytes(260 * WIDTH)),
    lambda asked: Opening(SESSION, asked.first, (2, 32, WIDTH), "float32", bytes(256 * WIDTH)),
    lambda asked: Opening(SESSION, asked.first, (1, 64, WIDTH - 1), "float32", bytes(256 * (WIDTH - 1))),
    lambda asked: Opening(SESSION, asked.first, (1, 64, WIDTH), "bfloat16", bytes(128 * WIDTH)),
    lambda asked: Opening(bytes(16), asked.first, (1, 64, WIDTH), "float32", bytes(256 * WIDTH)),
    lambda asked: Step(SESSION, asked.first, (1, 64, WIDTH), "float32", bytes(256 * WIDTH)),
]


@pytest.mark.parametrize("frame", [*WRONG, refusal("gone"), refusal("spent"), refusal("anything")])
async def test_a_stage_that_must_open_and_answers_with_something_else_has_failed(stages, frame):
    stages.does[AUDITED] = stages.answers(frame)
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.FAIL, AUDITED)


async def test_a_stage_that_ends_every_stream_instead_of_answering_has_failed(stages):
    stages.does[AUDITED] = hang_up
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.FAIL, AUDITED)
    assert len([entry for entry in stages.asked if entry[0] == AUDITED]) == 2, "it had another chance"


@pytest.mark.parametrize("ended_before_s", [6.0, 200.0])
async def test_a_log_that_need_not_be_there_any_more_is_nobodys_fault(stages, ended_before_s):
    stages.session.ended_s = time.monotonic() - ended_before_s
    stages.does[BEFORE] = stages.answers(refusal("gone"))
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.NOT_AUDITABLE, "")


async def test_a_stage_that_was_lost_in_the_middle_need_not_have_kept_anything(stages):
    stages.session.lost.add(BEFORE)
    stages.does[BEFORE] = stages.answers(refusal("gone"))
    assert (await stages.audit(stages.due())).outcome is Outcome.NOT_AUDITABLE


async def test_what_was_cropped_while_it_was_asked_for_is_nobodys_fault(stages):
    stages.does[AUDITED] = stages.answers(refusal("gone"))
    stages.is_whole = False
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.NOT_AUDITABLE, "")


async def test_a_stage_that_cannot_be_asked_is_not_at_fault_but_may_not_hide_for_ever(stages):
    stages.does["unreachable"] = BEFORE
    for number in range(1, MAX_IN_VAIN + 1):
        result = await stages.audit(stages.due())
        assert (result.outcome, result.owner) == (Outcome.INCONCLUSIVE, BEFORE)
        assert stages.auditor.book.is_elusive(BEFORE) == (number == MAX_IN_VAIN)
    assert not stages.auditor.book.is_elusive(AUDITED)


@pytest.mark.parametrize("does", ["busy", "silent"])
async def test_a_stage_that_is_busy_or_silent_is_asked_again(stages, does):
    answers = stages.answers(refusal("busy")) if does == "busy" else silence

    async def only_once(frames, asked):
        del stages.does[AUDITED]
        await answers(frames, asked)

    stages.does[AUDITED] = only_once
    assert (await stages.audit(stages.due())).outcome is Outcome.PASS
    stages.does[AUDITED] = answers
    result = await stages.audit(stages.due())
    assert (result.outcome, result.owner) == (Outcome.INCONCLUSIVE, AUDITED)


async def test_a_stage_is_not_asked_for_more_than_it_must_open(stages):
    stages.session.asked[AUDITED] = (MAX_REVEALS, 0)
    stages.session.asked[BEFORE] = (0, 16 * 4 * WIDTH * LENGTH)
    assert [(await stages.audit(stages.due(previous=peer))).outcome for peer in (BEFORE, "")] == [
        Outcome.NOT_AUDITABLE
    ] * 2
    assert not stages.asked


async def test_a_client_that_leaves_waits_so_long_and_no_longer(stages):
    stages.does[AUDITED] = silence
    stages.auditor.begin([stages.due()] * 3, stages.session)
    began_s = time.monotonic()
    await stages.auditor.close(0.1)
    assert time.monotonic() - began_s < 1.0
    assert [(result.outcome, result.owner) for result in stages.results] == [(Outcome.INCONCLUSIVE, "")] * 3
    stages.auditor.begin([stages.due()], stages.session)
    assert stages.results[-1].outcome is Outcome.NOT_AUDITABLE


async def test_more_audits_than_so_many_do_not_pile_up(stages):
    stages.does[AUDITED] = silence
    stages.auditor.begin([stages.due()] * (MAX_WAITING + 5), stages.session)
    assert len(stages.auditor._waiting) == MAX_WAITING
    assert [result.outcome for result in stages.results] == [Outcome.NOT_AUDITABLE] * 5
    await stages.auditor.close(0.0)


def test_all_results_are_counted_by_whose_doing_they_are_and_the_newest_kept_without_what_was_opened():
    stages = Stages()
    made = [
        AuditResult(AUDITED, SESSION, 0, number, outcome, "", owner, object())
        for number, (outcome, owner) in enumerate([(Outcome.PASS, ""), (Outcome.FAIL, BEFORE), (Outcome.PASS, "")])
    ]
    for result in made * 100:
        stages.auditor.book.enter(result)
    book = stages.auditor.book
    assert (book.counts[AUDITED, Outcome.PASS], book.counts[BEFORE, Outcome.FAIL], book.total(Outcome.PASS)) == (
        200, 100, 200,
    )  # fmt: skip
    assert len(book.results) == 256
    assert {result.opening for result in book.results} == {None}
