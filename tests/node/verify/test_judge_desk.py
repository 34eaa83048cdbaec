"""A client has others judge for it and signs for that: over real sockets, with the accounts and ledgers of both."""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch

from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.membership.members import read_message, write_message
from dht.receipts.ledger import Ledger
from dht.work import Receipt, WorkKind
from node.agreement.checkpoint import Checkpoint, Cosign
from node.check.patience import look
from node.client import asked_form, asked_judge
from node.client.asked_form import Answer, Question
from node.client.asked_judge import AskedJudge
from node.client.audit_book import Measured, Outcome, Verdict
from node.client.route import Stage
from node.errors import FrameError
from node.verify import judge_desk
from node.verify.judge_desk import FIRST_TOKENS, MAX_WAITING, JudgeDesk
from node.verify.span_judge import SpanJudge
from tests.node.serve.contracted import contracts, dealings
from tests.node.verify.tiny import Tiny, adds_noise, given

MEASURED = Measured(1, 2, 3, bytes(32))


@dataclass
class Stream:
    """One end of a TCP connection on loopback, as ``dht.swarm.Stream`` offers it."""

    peer_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def finish(self):
        await self.close()

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Court:
    """Members and anchors; who dials an anchor reaches its handler."""

    def __init__(self):
        self.handlers, self.servers, self.tasks, self.dialled = {}, [], set(), []

    def dial_as(self, member):
        async def dial(peer_id, protocol, *, addresses=(), timeout_s=5.0):
            self.dialled.append(peer_id)
            if peer_id not in self.handlers:
                raise PeerUnreachable(f"peer {peer_id} has no such handler")
            accepted = asyncio.get_running_loop().create_future()
            server = await asyncio.start_server(lambda *pair: accepted.set_result(pair), "127.0.0.1", 0)
            self.servers.append(server)
            here = Stream(peer_id, *await asyncio.open_connection(*server.sockets[0].getsockname()))
            task = asyncio.create_task(self._handle(self.handlers[peer_id], Stream(member, *await accepted)))
            self.tasks.add(task)
            return here

        return dial

    @staticmethod
    async def _handle(handler, stream):
        try:
            await handler(stream)
        except (OSError, EOFError):
            pass
        finally:
            await stream.close()

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers:
            server.close()


class Party:
    def __init__(self):
        self.identity, self.ledger = Identity.ephemeral(), Ledger.open(None)
        self.peer_id = self.identity.peer_id

    def receipts(self, provider, consumer):
        return [
            signed.record
            for signed in self.ledger.newest(self.peer_id)
            if (signed.record.provider, signed.record.consumer) == (provider, consumer)
        ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def court():
    made = Court()
    yield made
    await made.close()


class Anchor(Party):
    def __init__(self, court, tiny, judge):
        super().__init__()
        self.told = []
        self.contracts = contracts(self.identity, self.ledger, time.time)
        manifest = tiny.checkpoint.manifest32
        self.desk = JudgeDesk(self.contracts, manifest, tiny.checkpoint.num_blocks, judge, self.told.append)
        court.handlers[self.peer_id] = self.desk.handle


class Client(Party):
    def __init__(self, court, *anchors):
        super().__init__()
        self.dealings = dealings(self.identity, self.ledger, time.time)
        peers = [anchor if isinstance(anchor, str) else anchor.peer_id for anchor in anchors]
        self.ask = AskedJudge(court.dial_as(self.peer_id), self.dealings, lambda: peers)


async def newest(*parties):
    for party in parties:
        await (party.dealings if isinstance(party, Client) else party.contracts).drained()
    (client, anchor) = parties
    found = [party.receipts(anchor.peer_id, client.peer_id) for party in parties]
    assert found[0] == found[1], "both hold the same"
    return max(found[0], key=lambda receipt: receipt.seq, default=None)


async def test_an_anchor_judges_as_it_would_for_itself_and_both_sign_for_its_work(court, tiny):
    judge = SpanJudge(tiny.checkpoint, tiny.calibration)
    anchor = Anchor(court, tiny, judge.judge_alone)
    client = Client(court, anchor)
    for number, (cheat, outcome) in enumerate([((), Outcome.PASS), ((adds_noise(0.05),), Outcome.FAIL)], 1):
        opening = tiny.opening(*cheat)
        verdict = await client.ask(opening)
        assert verdict.outcome is outcome
        assert verdict == replace(judge.judge_alone(opening), shows_itself=False, was_run=False)
        receipt = await newest(client, anchor)
        assert receipt.work_kind is WorkKind.AUDIT
        assert (receipt.amount, receipt.work) == (64 * number, 128 * number), "tokens, and times two blocks"
        assert receipt.sessions == number
        assert len({each.lane for each in client.receipts(anchor.peer_id, client.peer_id)}) == 1, "the lane goes on"
    assert [(each.outcome, each.tokens, each.is_signed) for each in anchor.told] == [
        (Outcome.PASS, 64, True),
        (Outcome.FAIL, 64, True),
    ]


async def test_ends_of_a_client_without_weights_are_judged_too(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    for sampling in (None, (0.0, 0, 1.0, 0)):
        assert (await client.ask(tiny.ends_opening(sampling))).outcome is Outcome.PASS
        lied = tiny.ends_opening(sampling, logits_of=lambda logits: -logits)
        assert (await client.ask(lied)).outcome is Outcome.FAIL


async def test_what_was_not_run_again_says_nothing_and_costs_nothing(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    verdict = await client.ask(tiny.ends_opening((1.0, 0, 1.0, 7)))
    assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, None)
    assert "drew by a seed" in verdict.why
    assert await newest(client, anchor) is None
    assert (await client.ask(tiny.opening())).outcome is Outcome.PASS, "and the lane may be taken"


async def test_what_was_run_again_in_vain_says_nothing_and_is_paid_for(court, tiny):
    """Else whoever makes up inputs that are no numbers has a verifier compute for nothing, as often as it likes."""
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    verdict = await client.ask(tiny.opening(inputs=given(torch.full((1, 64, 64), torch.nan))))
    assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, None)
    assert "gives no numbers" in verdict.why
    receipt = await newest(client, anchor)
    assert (receipt.work_kind, receipt.amount) == (WorkKind.AUDIT, 64)
    assert [(each.outcome, each.tokens, each.is_signed) for each in anchor.told] == [(Outcome.INCONCLUSIVE, 64, True)]


async def test_a_judge_that_breaks_blames_nobody_and_goes_on(court, tiny):
    def broken(opening):
        raise IndexError("index out of range")

    client = Client(court, Anchor(court, tiny, broken))
    for _ in range(2):
        verdict = await client.ask(tiny.opening())
        assert (verdict.outcome, verdict.measured) == (Outcome.INCONCLUSIVE, None)


async def test_anchors_that_do_not_judge_are_not_asked_again_for_a_while(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    away = Identity.ephemeral().peer_id
    client = Client(court, away, anchor)
    outcomes = [(await client.ask(tiny.opening())).outcome for _ in range(8)]
    assert outcomes == [Outcome.PASS] * 8
    assert court.dialled.count(away) <= 1
    nobody = Client(court, away)
    for _ in range(2):
        verdict = await nobody.ask(tiny.opening())
        assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "none of the anchors judges" in verdict.why


async def test_another_model_is_refused_and_nobody_judges_himself(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    other = await client.ask(tiny.opening(manifest=bytes(32)))
    assert other.outcome is Outcome.INCONCLUSIVE
    assert "another model" in other.why
    own = await Client(court, anchor).ask(tiny.opening(provider=anchor.identity))
    assert "none of the anchors" in own.why


async def test_who_does_not_sign_is_known_for_it_and_others_are_served(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    thief, client = Client(court, anchor), Client(court, anchor)

    async def leaves(*_):
        raise PeerUnreachable("gone without signing")

    thief.ask._sign = leaves
    assert (await thief.ask(tiny.opening())).outcome is Outcome.INCONCLUSIVE
    assert (await client.ask(tiny.opening())).outcome is Outcome.PASS
    await asyncio.gather(*court.tasks, return_exceptions=True)
    await anchor.contracts.drained()
    assert anchor.ledger.standing(anchor.peer_id, thief.peer_id)[0] == 1
    assert anchor.ledger.standing(anchor.peer_id, client.peer_id)[0] == 0
    assert [each.is_signed for each in anchor.told] == [False, True]


@pytest.mark.parametrize(
    "answer",
    [b"", b"rubbish", bytes(5000), Cosign(1, (bytes(64),)).to_body(), Cosign(2, (bytes(64),)).to_body()],
    ids=["nothing", "rubbish", "too much", "no signature", "another number"],
)
async def test_who_signs_with_rubbish_has_not_signed_and_is_no_defect_of_the_verifier(court, tiny, answer):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    thief = Client(court, anchor)

    async def signs_rubbish(stream, *_):
        await write_message(stream.writer, answer)

    thief.ask._sign = signs_rubbish
    assert (await thief.ask(tiny.opening())).outcome is Outcome.PASS
    assert await asyncio.gather(*court.tasks, return_exceptions=True) == [None]
    await anchor.contracts.drained()
    assert [each.is_signed for each in anchor.told] == [False]
    assert anchor.ledger.standing(anchor.peer_id, thief.peer_id)[0] == 1


async def test_one_member_holds_one_place_and_all_together_a_few(court, tiny, monkeypatch):
    monkeypatch.setattr(judge_desk, "MAX_NEW", MAX_WAITING)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(opening):
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return Verdict(Outcome.PASS, "", MEASURED, was_run=True)

    anchor = Anchor(court, tiny, slow)
    clients = [Client(court, anchor) for _ in range(MAX_WAITING + 1)]
    first = asyncio.create_task(clients[0].ask(tiny.opening()))
    while not anchor.desk._held:
        await asyncio.sleep(0.01)
    again = AskedJudge(court.dial_as(clients[0].peer_id), clients[0].dealings, lambda: [anchor.peer_id])
    assert "No time now" in (await again(tiny.opening())).why
    others = [asyncio.create_task(client.ask(tiny.opening())) for client in clients[1:MAX_WAITING]]
    while anchor.desk._held.total() < MAX_WAITING:
        await asyncio.sleep(0.01)
    assert "No time now" in (await clients[-1].ask(tiny.opening())).why
    release.set()
    assert {(await each).outcome for each in (first, *others)} == {Outcome.PASS}
    assert not anchor.desk._held


async def test_for_who_has_given_up_waiting_nothing_is_run_and_nobody_is_blamed(court, tiny):
    """Neither where its turn has not come, nor where the verdict comes too late."""
    release, judged = threading.Event(), []

    def slow(opening):
        judged.append(opening.session)
        assert release.wait(30)
        return Verdict(Outcome.PASS, "", MEASURED, was_run=True)

    anchor = Anchor(court, tiny, slow)
    impatient, behind = Client(court, anchor), Client(court, anchor)
    asking = []
    for number, client in enumerate((impatient, behind), 1):
        asking.append(asyncio.create_task(client.ask(tiny.opening())))
        while anchor.desk._held.total() < number or not judged:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await asyncio.sleep(0.2)
    release.set()
    await asyncio.gather(*court.tasks, return_exceptions=True)
    await anchor.contracts.drained()
    assert len(judged) == 1
    for client in (impatient, behind):
        assert anchor.ledger.standing(anchor.peer_id, client.peer_id)[0] == 0
    assert not anchor.told
    assert (await Client(court, anchor).ask(tiny.opening())).outcome is Outcome.PASS


async def test_a_verifier_that_leaves_gives_up_what_is_under_way_before_its_ledger_is_closed(court, tiny, monkeypatch):
    """Judged, waiting for its turn, or still on its way: nothing uses the ledger afterwards, and nobody is to blame."""
    monkeypatch.setattr(judge_desk, "MAX_NEW", MAX_WAITING)
    began = threading.Event()

    def slow(opening):
        began.set()
        while True:
            look()
            time.sleep(0.01)

    anchor = Anchor(court, tiny, slow)
    clients = [Client(court, anchor) for _ in range(2)]
    asking = [asyncio.create_task(client.ask(tiny.opening())) for client in clients]
    stalling = Client(court, anchor)
    stream = await court.dial_as(stalling.peer_id)(anchor.peer_id, "")
    stage = Stage(anchor.peer_id, 0, 2, (), weights="float32")
    deal = stalling.dealings.offer(bytes(16), tiny.checkpoint.manifest32, "float32", stage, 64)
    await write_message(stream.writer, Question(deal.body, deal.signature, 2**20).to_bytes())
    while anchor.desk._held.total() < 3 or not began.is_set():
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await anchor.desk.close()
    assert not anchor.desk._held
    assert all(task.done() for task in court.tasks)
    await anchor.contracts.drained()
    for client in (*clients, stalling):
        assert anchor.ledger.standing(anchor.peer_id, client.peer_id)[0] == 0
    await stream.close()
    assert {(await each).outcome for each in asking} == {Outcome.INCONCLUSIVE}
    late = Client(court, anchor)
    assert (await late.ask(tiny.opening())).outcome is Outcome.INCONCLUSIVE
    assert not anchor.desk._held


def offering(client, anchor, tiny, tokens):
    stage = Stage(anchor.peer_id, 0, 2, (), weights="float32")
    return client.dealings.offer(bytes(range(16)), tiny.checkpoint.manifest32, "float32", stage, tokens)


async def test_a_new_name_has_little_judged_and_who_signs_has_more(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)

    async def is_taken(tokens):
        client.dealings.forget_lanes(anchor.peer_id)
        deal = offering(client, anchor, tiny, tokens)
        stream = await court.dial_as(client.peer_id)(anchor.peer_id, "")
        await write_message(stream.writer, Question(deal.body, deal.signature, 10).to_bytes())
        answer = Answer.from_bytes(await read_message(stream.reader, 4096))
        await stream.close()
        while anchor.desk._held:
            await asyncio.sleep(0.01)
        assert answer.code in ("", "too_long")
        return answer.code == ""

    assert await is_taken(FIRST_TOKENS)
    assert not await is_taken(FIRST_TOKENS + 1)
    for _ in range(FIRST_TOKENS // 64):
        assert (await client.ask(tiny.opening())).outcome is Outcome.PASS
    await newest(client, anchor)
    assert await is_taken(2 * FIRST_TOKENS)
    assert not await is_taken(2 * FIRST_TOKENS + 1)


async def test_what_is_too_long_for_an_anchor_is_no_reason_not_to_ask_it_again(court, tiny, monkeypatch):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    with monkeypatch.context() as patched:
        patched.setattr(judge_desk, "FIRST_TOKENS", 10)
        assert "Up to 10 tokens" in (await client.ask(tiny.opening())).why
    assert (await client.ask(tiny.opening())).outcome is Outcome.PASS


async def test_new_names_that_hold_places_keep_nobody_from_them_who_has_signed(court, tiny):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    known = Client(court, anchor)
    assert (await known.ask(tiny.opening())).outcome is Outcome.PASS
    await newest(known, anchor)
    streams, codes = [], []
    for _ in range(MAX_WAITING):
        sybil = Client(court, anchor)
        deal = offering(sybil, anchor, tiny, 64)
        streams.append(await court.dial_as(sybil.peer_id)(anchor.peer_id, ""))
        await write_message(streams[-1].writer, Question(deal.body, deal.signature, 2**20).to_bytes())
        codes.append(Answer.from_bytes(await read_message(streams[-1].reader, 4096)).code)
    assert codes == ["", "", "busy", "busy"]
    assert (await known.ask(tiny.opening())).outcome is Outcome.PASS
    for stream in streams:
        await stream.close()


async def test_who_sends_slowly_is_given_up(court, tiny, monkeypatch):
    monkeypatch.setattr(asked_form, "ANSWER_S", 0.3)
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    client = Client(court, anchor)
    deal = offering(client, anchor, tiny, 64)
    stream = await court.dial_as(client.peer_id)(anchor.peer_id, "")
    await write_message(stream.writer, Question(deal.body, deal.signature, 2**20).to_bytes())
    await read_message(stream.reader, 4096)
    began_s = time.monotonic()
    while anchor.desk._held and time.monotonic() - began_s < 5.0:
        stream.writer.write(bytes(2**14))
        await asyncio.sleep(0.05)
    assert time.monotonic() - began_s < 2.0
    await stream.close()


class CrookedAnchor(Party):
    """Takes every offer, and then says ``said`` and asks for a signature under what ``change`` makes of a receipt."""

    def __init__(self, court, tiny, change):
        super().__init__()
        self.contracts = contracts(self.identity, self.ledger, time.time)
        self.change = change
        verdict = Verdict(Outcome.PASS, "", MEASURED, was_run=True)
        self.desk = JudgeDesk(
            self.contracts, tiny.checkpoint.manifest32, tiny.checkpoint.num_blocks, lambda _: verdict, lambda _: None
        )
        court.handlers[self.peer_id] = self.handle

    async def handle(self, stream):
        writer, change, sign = stream.writer, self.change, self.identity.sign

        class Writer:
            def __getattr__(self, name):
                return getattr(writer, name)

            def write(self, data):
                try:
                    made = Checkpoint.from_body(data[2:])
                except FrameError:
                    writer.write(data)
                    return
                body = change(Receipt.from_body(made.receipts[0])).to_body()
                changed = replace(made, receipts=(body,), signatures=(sign(Receipt.KIND, body),)).to_body()
                writer.write(len(changed).to_bytes(2, "big") + changed)

        await self.desk.handle(Stream(stream.peer_id, stream.reader, Writer()))


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: replace(receipt, amount=65, work=130),
        lambda receipt: replace(receipt, commitment=bytes(32)),
        lambda receipt: replace(receipt, work_kind=WorkKind.DECODE),
        lambda receipt: replace(receipt, end=3, work=192),
        lambda receipt: replace(receipt, bytes_in=receipt.bytes_in + 1),
        lambda receipt: replace(receipt, sessions=2),
    ],
)
async def test_a_client_signs_for_nothing_that_was_not_done(court, tiny, change):
    crook = CrookedAnchor(court, tiny, change)
    client = Client(court, crook)
    verdict = await client.ask(tiny.opening())
    assert verdict.outcome is Outcome.INCONCLUSIVE, "nor is it believed"
    await client.dealings.drained()
    assert not client.receipts(crook.peer_id, client.peer_id)


async def test_a_member_that_sends_rubbish_is_told_so(court, tiny, monkeypatch):
    anchor = Anchor(court, tiny, SpanJudge(tiny.checkpoint, tiny.calibration).judge_alone)
    dial = court.dial_as(Identity.ephemeral().peer_id)
    stream = await dial(anchor.peer_id, "")
    await write_message(stream.writer, Question(b"rubbish", bytes(64), 10).to_bytes())
    assert Answer.from_bytes(await read_message(stream.reader, 4096)).code == "bad_offer"
    await stream.close()
    monkeypatch.setattr(asked_judge, "pack_opening", lambda _: b"rubbish")
    verdict = await Client(court, anchor).ask(tiny.opening())
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "cannot be read" in verdict.why
