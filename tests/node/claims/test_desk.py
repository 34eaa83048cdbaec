"""What a node signs about claims: what it found, once, and in time."""

import asyncio
import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field

import pytest

from dht.contest import Contest
from dht.errors import PeerUnreachable
from dht.judgement.judge import judge
from dht.records import Kind
from dht.rules import DEFAULT_RULES
from dht.verdict import Opinion, Verdict, VerdictPhase
from node.check.patience import look
from node.claims.desk import Desk
from node.claims.findings import Finding
from node.claims.notebook import Notebook
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, BY_ID, PEERS, UNIT_S, Town, court_of
from tests.node.check.session import held

HOLDERS = (ACCUSED, *PEERS[2:7])
JUROR = PEERS[2]


@dataclass
class Board:
    """A swarm that keeps what is stored, as records; one that is down takes nothing."""

    is_down: bool = False
    records: list = field(default_factory=list)

    async def store(self, signed):
        if self.is_down:
            raise PeerUnreachable("down")
        self.records.append(signed.record)
        return True


class Scene:
    """One claim before a court, and one node that has a desk."""

    def __init__(self, home, member, opinion, *, fetched=None):
        session = held(provider=BY_ID[ACCUSED])
        signature = BY_ID[ACCUSED].sign(Kind.RECEIPT, session.receipt.to_body())
        self.blob, self.claim = session.claim(accuser=ACCUSER, receipt_signature=signature)
        court = court_of(HOLDERS, dict.fromkeys((ACCUSER, *HOLDERS), 2**40), ANCHORS)
        court.holdings._spans[bytes(32)] = next(iter(court.holdings._spans.values()))  # The session is of this model.
        self.town = Town(court, [self.claim], [], [])
        self.member, self.opinion, self.home = member, opinion, home
        self.fetched = self.blob if fetched is None else fetched
        self.num_examined = 0
        self.swarm = Board()
        self.now_s = self.claim.t
        self.salts = itertools.count(1)
        self.opened = []
        self.start()

    def start(self):
        """Begin with what stands on disk, as after a crash."""
        self.notebook = Notebook.open(self.home / "claims.sqlite")
        self.opened.append(self.notebook)
        self.desk = Desk(
            self.swarm, BY_ID[self.member], self.notebook, self.fetch, self.examine,
            clock=lambda: self.now_s, draw=lambda size: next(self.salts).to_bytes(size, "big"),
        )  # fmt: skip

    async def fetch(self, _):
        if isinstance(self.fetched, Exception):
            raise self.fetched
        return self.fetched

    def examine(self, *_):
        self.num_examined += 1
        return Finding(self.opinion, 400_000, "So says the test.")

    async def attend(self, units):
        self.now_s = self.claim.t + int(units * UNIT_S)
        stored = self.swarm.records
        self.town.contests = [each for each in stored if isinstance(each, Contest)]
        self.town.verdicts = [each for each in stored if isinstance(each, Verdict)]
        cases = self.town.cases
        outcomes = judge(cases, self.town.court, self.now_s)
        await self.desk.attend(cases, outcomes, DEFAULT_RULES)
        await self.desk.settle()

    def denied(self):
        self.swarm.records.append(
            Contest(ACCUSED, self.claim.epoch, self.claim.hash, ACCUSER, 1, self.claim.t + UNIT_S)
        )


@pytest.fixture
def scene_of(tmp_path):
    scenes = []

    def scene(*words, **options):
        scenes.append(Scene(tmp_path, *words, **options))
        return scenes[-1]

    yield scene
    for notebook in (each for scene in scenes for each in scene.opened):
        notebook.close()


def test_a_node_that_leaves_does_not_wait_for_an_examination(scene_of):
    scene = scene_of(JUROR, Opinion.UPHELD)
    begun, ended = threading.Event(), threading.Event()

    def examine(*_):
        begun.set()
        end_s = time.monotonic() + 20
        try:
            while time.monotonic() < end_s:
                look()
                time.sleep(0.01)
        finally:
            ended.set()

    async def leave():
        scene.examine = examine
        scene.start()
        scene.denied()
        attending = asyncio.create_task(scene.attend(3.1))
        await asyncio.to_thread(begun.wait, 5)
        await scene.desk.close()
        await attending

    began_s = time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(leave())  # Waits for its threads, as a process that ends does.
    assert time.monotonic() - began_s < 2.0
    assert ended.is_set()
    assert scene.swarm.records[1:] == []


async def test_an_innocent_server_denies_at_once_and_once(scene_of):
    scene = scene_of(ACCUSED, Opinion.REFUTED)
    for units in (0.1, 0.3, 0.6):
        await scene.attend(units)
    (denial,) = scene.swarm.records
    assert (denial.contester, denial.level) == (ACCUSED, 1)
    assert not scene.num_examined, "who is slow to find out is not late"


async def test_an_anchor_denies_for_others_what_it_finds_right_and_nothing_else(scene_of):
    for opinion in Opinion:
        scene = scene_of(ANCHORS[0], opinion)
        await scene.attend(0.1)
        assert scene.num_examined == 1
        denied = [(each.contester, each.level) for each in scene.swarm.records]
        assert denied == ([(ANCHORS[0], 1)] if opinion is Opinion.REFUTED else [])


async def test_what_could_not_be_told_is_found_out_again_when_the_node_can_tell_more_and_nothing_else(scene_of):
    scene = scene_of(ANCHORS[0], Opinion.INCONCLUSIVE)
    await scene.attend(0.1)
    scene.opinion = Opinion.REFUTED
    await scene.attend(0.2)
    assert (scene.num_examined, scene.swarm.records) == (1, [])
    scene.desk.reconsider()
    await scene.attend(0.3)
    assert [(each.contester, each.level) for each in scene.swarm.records] == [(ANCHORS[0], 1)]
    scene.desk.reconsider()
    await scene.attend(0.4)
    assert scene.num_examined == 2, "what was found stands"


async def test_a_server_that_finds_itself_guilty_does_not_appeal(scene_of):
    scene = scene_of(ACCUSED, Opinion.UPHELD)
    for units in (8.1, 8.3, 8.9):
        await scene.attend(units)
    assert not scene.swarm.records
    assert scene.num_examined == 1


async def test_a_server_that_was_convicted_by_default_and_finds_itself_right_appeals(scene_of):
    scene = scene_of(ACCUSED, Opinion.REFUTED)
    await scene.attend(8.1)
    await scene.attend(8.5)
    (appeal,) = scene.swarm.records
    assert (appeal.contester, appeal.level) == (ACCUSED, 2)


async def test_who_cannot_have_the_evidence_appeals_and_as_a_juror_cannot_tell(scene_of):
    scene = scene_of(ACCUSED, Opinion.UPHELD, fetched=PeerUnreachable("gone"))
    await scene.attend(8.1)
    await scene.attend(8.3)
    assert [type(each) for each in scene.swarm.records] == [Contest]
    juror = scene_of(JUROR, Opinion.UPHELD, fetched=PeerUnreachable("gone"))
    juror.denied()
    for units in (3.1, 4.0, 4.6, 6.5):
        await juror.attend(units)
    assert juror.swarm.records[-1].opinion is Opinion.INCONCLUSIVE


async def test_a_juror_asks_again_for_evidence_that_its_author_had_no_time_to_hand_out(scene_of):
    """Four readers hold an accuser up, by chance or on purpose: that acquits nobody while there is time."""
    scene = scene_of(JUROR, Opinion.UPHELD, fetched=PeerUnreachable("not now"))
    scene.denied()
    await scene.attend(3.1)
    await scene.attend(3.6)
    scene.fetched = scene.blob
    for units in (4.1, 4.4, 6.5):
        await scene.attend(units)
    assert scene.swarm.records[-1].opinion is Opinion.UPHELD


@pytest.mark.parametrize("spoil", [lambda blob: blob[:-1], lambda blob: bytes([blob[0] ^ 1]) + blob[1:]])
async def test_evidence_that_does_not_hash_to_the_claim_is_refused_before_anything_is_run(scene_of, spoil):
    scene = scene_of(ACCUSED, Opinion.UPHELD)
    scene.fetched = spoil(scene.blob)
    await scene.attend(8.1)
    assert scene.desk.finding(scene.claim.hash).opinion is Opinion.REFUTED
    assert not scene.num_examined


async def test_a_juror_commits_to_what_it_found_and_opens_it(scene_of):
    scene = scene_of(JUROR, Opinion.UPHELD)
    scene.denied()
    for units in (3.1, 3.5, 4.0, 6.2, 6.5):
        await scene.attend(units)
    committed, opened = scene.swarm.records[1:]
    assert (committed.phase, opened.phase) == (VerdictPhase.COMMIT, VerdictPhase.REVEAL)
    assert opened.committed == committed.commitment
    assert (opened.opinion, opened.error_ppm) == (Opinion.UPHELD, 400_000)


async def test_a_crash_between_disk_and_network_loses_no_vote_and_makes_no_second_one(scene_of):
    scene = scene_of(JUROR, Opinion.UPHELD)
    scene.denied()
    await scene.attend(3.1)
    scene.swarm.is_down = True
    await scene.attend(3.5)
    written = scene.notebook.ballot(scene.claim.hash, 1)
    assert written is not None
    scene.swarm.is_down, scene.opinion = False, Opinion.REFUTED  # It would find something else the next time.
    scene.start()
    await scene.attend(4.0)
    scene.start()
    await scene.attend(6.5)
    committed, opened = scene.swarm.records[1:]
    assert opened.committed == committed.commitment
    assert (opened.salt, opened.opinion) == (written.salt, Opinion.UPHELD)
    assert scene.num_examined == 1


async def test_a_notebook_that_fails_keeps_nobody_from_denying_what_it_is_accused_of(scene_of):
    juror = scene_of(JUROR, Opinion.UPHELD)
    juror.denied()
    await juror.attend(3.1)
    juror.notebook._file.close()
    await juror.attend(3.5)
    accused = scene_of(ACCUSED, Opinion.REFUTED)
    accused.notebook._file.close()
    await accused.attend(0.1)
    await accused.attend(1.9)
    assert [each.level for each in accused.swarm.records] == [1]


async def test_who_has_lost_its_notebook_opens_nothing(scene_of):
    scene = scene_of(JUROR, Opinion.UPHELD)
    scene.denied()
    for units in (3.1, 3.5):
        await scene.attend(units)
    scene.home = scene.home / "empty"
    scene.home.mkdir()
    scene.start()
    await scene.attend(6.5)
    assert [type(each) for each in scene.swarm.records] == [Contest, Verdict]


async def test_who_does_not_sit_signs_nothing(scene_of):
    scene = scene_of(PEERS[150], Opinion.UPHELD)
    scene.denied()
    for units in (0.1, 3.1, 3.5, 6.5):
        await scene.attend(units)
    assert len(scene.swarm.records) == 1
    assert not scene.num_examined
