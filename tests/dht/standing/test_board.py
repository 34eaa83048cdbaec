"""Scores from what real nodes hold: who has flow, who lied, and that all who read the same find the same."""

import asyncio
import random
import time
from dataclasses import replace

import pytest

from dht.audit import Finding
from dht.claim import Claim
from dht.contest import Contest
from dht.equivocation import find_equivocations
from dht.ident import Ident, Role, Succession
from dht.identity import Identity
from dht.judgement.outcomes import Ruling, State
from dht.judgement.signed_rulings import record_of
from dht.receipts.snapshot_keeper import SnapshotKeeper
from dht.receipts.snapshots import newest_record
from dht.records import Envelope, Kind, seal
from dht.rules import DEFAULT_RULES
from dht.ruling import term_of
from dht.snapshot import NO_SCORES
from dht.standing import board as board_module
from dht.standing.board import ScoreBoard
from dht.standing.snapshot_scores import SnapshotScores
from dht.testnet import testnet
from tests.dht.receipts.made import sealed
from tests.dht.samples import receipt
from tests.dht.test_audit import AUDIT

ANCHOR, HONEST, LIAR, NEW, HEIR = (Identity.ephemeral() for _ in range(5))
EPOCH = DEFAULT_RULES.epoch_of(time.time())
NOON_S = DEFAULT_RULES.start_of(EPOCH) + 10_000
BIG = {"amount": 4096, "work": 4 * 4096}


def enrolled(peer):
    return seal(Ident(peer.peer_id, EPOCH, EPOCH, 0, Role.SERVER, ""), peer)


def audited(finding, *, ago=0):
    epoch = EPOCH - ago
    t = DEFAULT_RULES.start_of(epoch) + 60
    audit = replace(
        AUDIT, auditor=ANCHOR.peer_id, provider=HONEST.peer_id, consumer=ANCHOR.peer_id, epoch=epoch,
        receipt_epoch=epoch, finding=finding, t=t,
    )  # fmt: skip
    return seal(audit, ANCHOR)


def board(node, **options):
    return ScoreBoard(
        node, anchors=[ANCHOR.peer_id], clock=lambda: NOON_S, rng=random.Random(1), **options
    )  # fmt: skip


@pytest.fixture
async def nodes():
    async with testnet(3, rules=DEFAULT_RULES, anchors=[ANCHOR.peer_id]) as nodes:
        await asyncio.gather(*(node.wait_for_rules(10) for node in nodes))
        for peer in (ANCHOR, HONEST, LIAR):
            await nodes[1].store(enrolled(peer))
        for provider in (HONEST, LIAR):
            for ago in (0, 1):
                assert await nodes[1].store(sealed(provider, ANCHOR, epochs_ago=ago, **BIG))
        yield nodes


async def test_who_worked_for_an_anchor_has_flow_and_who_is_proven_a_liar_has_none(nodes):
    first, second, _ = nodes
    watching = board(first)
    before = (await watching.refresh()).scores
    assert before.has_flow
    assert before.standing(HONEST.peer_id).score == before.standing(LIAR.peer_id).score > 0
    assert before.standing(NEW.peer_id).is_newcomer
    one, other = (sealed(LIAR, NEW, seq=3, bytes_in=size) for size in (1, 2))
    for proof in find_equivocations(Envelope.from_bytes(each.envelope) for each in (one, other)):
        await second.store(seal(proof))
    await second.store(audited(Finding.PASS))
    after = (await watching.refresh()).scores
    assert (after.standing(LIAR.peer_id).score, after.standing(LIAR.peer_id).is_equivocator) == (0, True)
    assert after.standing(HONEST.peer_id).score > 0
    assert watching.standings.evidence.passes


async def test_an_auditor_that_finds_fault_takes_back_its_own_trust(nodes):
    await nodes[2].store(audited(Finding.FAIL))
    scores = (await board(nodes[0]).refresh()).scores
    assert scores.standing(HONEST.peer_id).flow == 0
    assert scores.standing(LIAR.peer_id).flow > 0


async def test_an_heir_has_what_was_earned_before(nodes):
    watching = board(nodes[0])
    earned = (await watching.refresh()).scores.standing(HONEST.peer_id)
    await nodes[1].store(seal(Succession(HONEST.peer_id, HEIR.peer_id, EPOCH), HONEST, HEIR))
    scores = (await watching.refresh()).scores
    assert scores.standing(HONEST.peer_id).is_dead
    # What it did in the present epoch, in which it ends, counts for nobody: the heir has the work of the one before.
    assert 0 < scores.standing(HEIR.peer_id).flow <= earned.flow


async def test_settled_epochs_are_read_once_and_newcomers_in_full(nodes, monkeypatch):
    watching, asked = board(nodes[0]), []
    await watching.refresh()
    honest = nodes[0].read_many

    def noting(kind, keys, **options):
        asked.extend((kind, key) for key in keys if len(key) == 2)
        return honest(kind, keys, **options)

    monkeypatch.setattr(nodes[0], "read_many", noting)
    await watching.refresh()
    terms = {term for kind, (_, term) in asked if kind == Kind.RULING}
    assert {epoch for kind, (_, epoch) in asked if kind != Kind.RULING} == {EPOCH, EPOCH - 1}
    assert terms == {term_of(EPOCH), term_of(EPOCH) - 1}
    asked.clear()
    await nodes[1].store(sealed(NEW, ANCHOR, epochs_ago=9, **BIG))
    await nodes[1].store(enrolled(NEW))
    standings = await watching.refresh()
    assert standings.scores.standing(NEW.peer_id).flow > 0
    assert 0 < standings.contributions[NEW.peer_id].provided < BIG["work"], "less with age"


async def test_two_bootstraps_that_read_the_same_publish_the_same_scores(nodes):
    await nodes[1].store(audited(Finding.PASS, ago=1))
    found = []
    for node in nodes[:2]:
        keeper = SnapshotKeeper(node, node._identity, clock=lambda: NOON_S, scores=SnapshotScores(node))
        assert await keeper.sum_up(DEFAULT_RULES)
        found.append(await newest_record(nodes[2], node.peer_id, EPOCH))
    assert found[0].digest == found[1].digest
    assert found[0].scores == found[1].scores != NO_SCORES
    again = SnapshotKeeper(nodes[0], nodes[0]._identity, clock=lambda: NOON_S, scores=SnapshotScores(nodes[0]))
    await nodes[1].store(audited(Finding.FAIL, ago=1))
    assert await again.sum_up(DEFAULT_RULES)
    assert await newest_record(nodes[2], nodes[0].peer_id, EPOCH) == found[0], "what was signed once stands"


async def test_a_refresh_that_fails_is_not_the_last_one(nodes, monkeypatch):
    monkeypatch.setattr(board_module, "period_s", lambda _: 0.05)
    monkeypatch.setattr(board_module, "MIN_PERIOD_S", 0.0)
    watching, heard = board(nodes[0]), asyncio.Event()
    watching.on_refreshed = lambda _: heard.set()
    honest, failures = watching._works.read, [ZeroDivisionError("a defect"), TimeoutError()]

    async def failing(window, checker):
        if failures:
            raise failures.pop()
        await honest(window, checker)

    monkeypatch.setattr(watching._works, "read", failing)
    running = asyncio.create_task(watching.run())
    try:
        async with asyncio.timeout(20):
            await heard.wait()
        assert not failures
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_accused_of_whom_nobody_else_knows_is_heard(nodes):
    """A server that has just joined stands in no receipt that was published: its denial is read all the same."""
    began = DEFAULT_RULES.start_of(EPOCH - 1)
    work = receipt(NEW, LIAR, epoch=EPOCH - 1, t_first=began + 1, t_last=began + 2).to_body()
    claim = Claim(
        LIAR.peer_id, EPOCH - 1, 0, work, NEW.sign(Kind.RECEIPT, work), bytes(16), segment=0, index=0, error_ppm=1,
        evidence=bytes(32), evidence_bytes=1, t=began + 100,
    )  # fmt: skip
    denial = Contest(NEW.peer_id, claim.epoch, claim.hash, claim.accuser, 1, claim.t + 10)
    assert await nodes[0].store(seal(claim, LIAR))
    assert await nodes[0].store(seal(denial, NEW))
    known = await board(nodes[2]).refresh()
    assert NEW.peer_id not in {peer for work in known.evidence.works for peer in work[:2]}
    assert known.proofs.contests == (denial,)


async def test_a_ruling_stands_for_good_only_when_a_second_reading_has_found_the_same(nodes):
    began = DEFAULT_RULES.start_of(EPOCH - 1)
    work = receipt(NEW, LIAR, epoch=EPOCH - 1, t_first=began + 1, t_last=began + 2).to_body()
    for seed in b"abc":
        holder = Identity.from_seed(bytes([seed]) * 32)
        await nodes[1].store(enrolled(holder))
        assert await nodes[1].store(sealed(holder, ANCHOR, epochs_ago=2, **BIG))
    claim = Claim(
        ANCHOR.peer_id, EPOCH - 1, 0, work, NEW.sign(Kind.RECEIPT, work), bytes(16), segment=0, index=0, error_ppm=1,
        evidence=bytes(32), evidence_bytes=1, t=began + 100,
    )  # fmt: skip
    assert await nodes[0].store(seal(claim, ANCHOR))
    reader = board(nodes[2])
    first = await reader.refresh()
    assert first.outcomes.rulings[0].state is State.UPHELD
    assert first.outcomes.rulings[0].is_final
    assert first.settled == {}
    assert set((await reader.refresh()).settled) == {claim.hash}


def accusation(epoch):
    """A claim of the anchor that nobody denies."""
    began = DEFAULT_RULES.start_of(epoch)
    work = receipt(LIAR, NEW, epoch=epoch, t_first=began + 1, t_last=began + 2).to_body()
    return Claim(
        ANCHOR.peer_id, epoch, 0, work, LIAR.sign(Kind.RECEIPT, work), bytes(16), segment=0, index=0, error_ppm=1,
        evidence=bytes(32), evidence_bytes=1, t=began + 100,
    )  # fmt: skip


def signed(claim, state=State.UPHELD):
    parties, place = (claim.accuser, claim.accused), (claim.epoch, claim.number)
    found = Ruling(claim.hash, *parties, *place, claim.chunk, state, "", claim.t + 18_000)
    return seal(record_of(found, ANCHOR.peer_id), ANCHOR)


async def test_rulings_that_come_late_or_contradict_earlier_ones_are_read_in_the_next_epoch(nodes):
    """An anchor may have been away, and one that signs two counts for neither: at every node alike."""
    first, second = (accusation(EPOCH - ago) for ago in (40, 50))
    assert await nodes[1].store(signed(first))
    now_s = [NOON_S]
    reader = ScoreBoard(nodes[0], anchors=[ANCHOR.peer_id], clock=lambda: now_s[0], rng=random.Random(1))
    assert set((await reader.refresh()).ruled) == {first.hash}
    assert await nodes[1].store(signed(second))
    assert await nodes[1].store(signed(first, State.REJECTED))
    assert set((await reader.refresh()).ruled) == {first.hash}
    now_s[0] += DEFAULT_RULES.epoch_s
    assert set((await reader.refresh()).ruled) == {second.hash}


async def test_snapshots_of_who_has_made_earlier_ones_and_of_who_has_not_have_the_same_digest(nodes):
    """What one of them found when it could still be worked out counts no more than what anchors have signed of it."""
    holders = [Identity.from_seed(bytes([seed]) * 32) for seed in b"abc"]
    claim = accusation(EPOCH - 4)
    assert await nodes[1].store(seal(claim, ANCHOR))
    peers = [each.peer_id for each in (*holders, HONEST, LIAR)]
    then, now = range(EPOCH - 56, EPOCH), range(EPOCH + 1, EPOCH + 57)
    of_then = [sealed(holder, ANCHOR, epochs_ago=5, **BIG).envelope for holder in holders]
    of_now = [sealed(each, ANCHOR, epochs_ago=-3, **BIG).envelope for each in (HONEST, LIAR)]

    old = SnapshotScores(nodes[0])
    assert await old(then, of_then, peers) != await SnapshotScores(nodes[1])(then, of_then[:2], peers)
    without = [await scores(now, of_now, peers) for scores in (old, SnapshotScores(nodes[1]))]
    assert without[0] == without[1] != NO_SCORES
    assert await nodes[1].store(signed(claim))
    told = [await scores(now, of_now, peers) for scores in (SnapshotScores(nodes[0]), SnapshotScores(nodes[1]))]
    assert told[0] == told[1] != without[0]
