"""An anchor signs what it has watched, once of each claim, and those who come later act by it."""

from types import SimpleNamespace

import pytest

from dht.claim import Claim
from dht.judgement.outcomes import State
from dht.judgement.signed_rulings import record_of
from dht.records import Envelope, Kind, seal
from dht.ruling import Outcome, RulingRecord
from dht.standing.board import ScoreBoard
from dht.standing.proofs import Proofs
from dht.standing.sightings import Sightings, half_unit_s
from dht.verdict import Opinion
from node.claims.clerk import Clerk
from node.claims.notebook import Notebook
from tests.dht.judgement.town import ANCHORS, BY_ID, UP, claim_of, play
from tests.dht.judgement.town import RULES as TOWN_RULES
from tests.dht.samples import receipt
from tests.node.claims.court import BIG, RULES, accusation

CLAIM = claim_of()
(FOUND,) = play([CLAIM], lambda *_: UP, denies=False, appeals=False).outcomes().rulings
NOW_S = FOUND.settled_s + 1000.0
ANCHOR = BY_ID[ANCHORS[0]]


class Stored:
    """Stands where the DHT does, and notes what is published."""

    def __init__(self):
        self.records = []

    async def store_many(self, records):
        self.records += [each.record for each in records]
        return [1 for _ in records]


def known(*, settled=(FOUND,), ruled=(), rulings=(), claims=(CLAIM,)):
    return SimpleNamespace(
        settled={each.claim: each for each in settled},
        ruled={each.claim: each for each in ruled},
        proofs=Proofs(claims=tuple(claims), rulings=tuple(rulings)),
    )


def watching(since_s):
    seen = Sightings()
    seen.look({}, Proofs(), since_s, half_unit_s(TOWN_RULES))
    return seen


@pytest.fixture
def notebook(tmp_path):
    opened = Notebook.open(tmp_path / "claims.sqlite")
    yield opened
    opened.close()


async def signed_by(notebook, found, sightings):
    swarm = Stored()
    await Clerk(swarm, ANCHOR, notebook).attend(found, sightings, TOWN_RULES, NOW_S)
    return swarm.records


async def test_an_anchor_signs_what_it_has_watched_and_publishes_it_until_it_can_be_read(notebook):
    seen = watching(CLAIM.t)
    ours = record_of(FOUND, ANCHOR.peer_id)
    assert await signed_by(notebook, known(), seen) == [ours]
    assert await signed_by(notebook, known(settled=()), watching(NOW_S)) == [ours], "after a restart, too"
    assert await signed_by(notebook, known(rulings=[ours]), seen) == []


async def test_of_what_an_anchor_has_not_watched_it_says_nothing_but_what_others_say(notebook):
    later = watching(CLAIM.t + 1)
    assert await signed_by(notebook, known(), later) == []
    assert await signed_by(notebook, known(claims=()), watching(CLAIM.t)) == []
    theirs = FOUND._replace(state=State.UNRESOLVED)
    assert await signed_by(notebook, known(settled=(), ruled=[theirs]), later) == [record_of(theirs, ANCHOR.peer_id)]


async def test_an_anchor_says_that_a_claim_came_too_late_where_it_knows(notebook):
    late = FOUND._replace(state=State.IGNORED, settled_s=CLAIM.t)
    assert await signed_by(notebook, known(), watching(NOW_S)) == []
    (record,) = await signed_by(notebook, known(settled=[late]), watching(NOW_S))
    assert record.outcome is Outcome.IGNORED


async def test_an_anchor_stays_with_its_own_word_and_never_signs_another(notebook, tmp_path):
    seen, other = watching(CLAIM.t), FOUND._replace(state=State.REJECTED)
    first = await signed_by(notebook, known(ruled=[other]), seen)
    assert [each.outcome for each in first] == [Outcome.UPHELD]
    assert await signed_by(notebook, known(settled=[other], ruled=[other]), seen) == first
    lost = Notebook.open(tmp_path / "new.sqlite")
    assert await signed_by(lost, known(settled=[other], ruled=[other], rulings=first), seen) == []
    lost.close()


async def test_a_disk_that_is_full_has_nothing_published(notebook):
    notebook.close()
    with pytest.raises(OSError, match="cannot be read or written"):
        await signed_by(notebook, known(), watching(CLAIM.t))


# -------------------------------------------------------------------------------------------------------- real nodes


async def watch(court, *, since, until, swarm=None):
    """Have the anchor look, or another one, as often as it must to know what comes when."""
    for tenth in range(round(since * 10), round(until * 10) + 1, 4):
        await court.turn(swarm or court.anchor, units=tenth / 10)


def newcomer(court, anchor, *, epochs_later=0):
    """A node that reads for the first time, and judges by one anchor."""
    now_s = court.clock.now_s + epochs_later * RULES.epoch_s
    return ScoreBoard(court.jurors[1], anchors=[anchor.peer_id], clock=lambda: now_s)


@pytest.fixture
def claimed_late(court):
    """Publish a claim of the anchor's epoch, or an earlier one, that says it was made then."""

    async def publish(epoch, number=0):
        began_s = RULES.start_of(epoch)
        work = receipt(
            court.accused._identity, court.accuser._identity, epoch=epoch, t_first=began_s + 1, t_last=began_s + 2,
            manifest=BIG["manifest"],
        ).to_body()  # fmt: skip
        by_accused = court.accused._identity.sign(Kind.RECEIPT, work)
        claim = Claim(
            court.accuser.peer_id, epoch, number, work, by_accused, bytes(16), segment=0, index=0, error_ppm=1,
            evidence=bytes(32), evidence_bytes=1, t=began_s + 101,
        )  # fmt: skip
        assert await court.accuser.store(seal(claim, court.accuser._identity, rules=RULES))
        return claim

    return publish


async def test_a_newcomer_after_the_window_convicts_whom_the_anchor_has_seen_convicted(court):
    court.opinions = dict.fromkeys(court.nodes, Opinion.UPHELD)
    court.nodes[court.accuser.peer_id].accuser.hold(accusation(court))
    await watch(court, since=-0.4, until=0)
    await court.turn(court.accuser, court.accused, units=0.1)
    since = 0.4
    for units in (3.1, 3.5, 6.1):
        await watch(court, since=since, until=units)
        await court.turn(*court.jurors, units=units)
        since = units + 0.1
    await watch(court, since=since, until=11)
    later = {"epochs_later": RULES.window_epochs + 1}
    found = await newcomer(court, court.anchor, **later).refresh()
    assert found.proofs.claims == ()
    assert [each.peer for each in found.judged.convictions] == [court.accused.peer_id]
    assert found.outcomes.rulings[0].why == "1 of 1 anchors have signed so."
    untold = await newcomer(court, court.accuser, **later).refresh()
    assert untold.judged.convictions == (), "by another anchor nothing is known"


async def test_newcomers_do_not_believe_a_claim_that_was_dated_back_to_an_anchor(court, claimed_late):
    """One is dated back by an hour, the other by three epochs: nobody reads the keys of those at every turn."""
    await watch(court, since=0, until=2)
    claims = [await claimed_late(court.clock.epoch), await claimed_late(court.clock.epoch - 3)]
    for units in (2.4, 2.7, 12.1, 12.4):
        await court.turn(court.anchor, units=units)
    told = (await newcomer(court, court.anchor).refresh()).outcomes
    assert {each.claim: each.state for each in told.rulings} == {each.hash: State.IGNORED for each in claims}
    untold = (await newcomer(court, court.accuser).refresh()).outcomes
    assert len(untold.rulings) == len(claims)
    assert State.IGNORED not in {each.state for each in untold.rulings}


@pytest.mark.parametrize("is_anchor", [False, True])
async def test_who_is_no_anchor_or_judges_by_others_than_the_swarms_signs_nothing_and_keeps_what_it_found(
    court, claimed_late, is_anchor
):
    """It has seen what the anchor above has."""
    watcher = court.anchor if is_anchor else court.jurors[0]
    node = court.nodes[watcher.peer_id]
    if is_anchor:
        node._anchors = (watcher.peer_id,)
    await watch(court, since=0, until=2, swarm=watcher)
    claim = await claimed_late(court.clock.epoch)
    await watch(court, since=2.4, until=3, swarm=watcher)
    assert node.board.standings.settled[claim.hash].state is State.IGNORED
    assert (await newcomer(court, watcher).refresh()).proofs.rulings == ()
    assert node.board._kept((court.anchor.peer_id,))[claim.hash].state is State.IGNORED
    assert node.board._kept((court.accused.peer_id,)) == {}


def test_what_is_signed_is_read_again_from_the_disk(notebook):
    envelope = seal(record_of(FOUND, ANCHOR.peer_id), ANCHOR, rules=TOWN_RULES).envelope
    notebook.keep_signed(FOUND.claim, FOUND.epoch, envelope)
    notebook.keep_signed(FOUND.claim, FOUND.epoch, b"another")
    assert notebook.signed_since(FOUND.epoch) == {FOUND.claim: envelope}
    assert RulingRecord.from_body(Envelope.from_bytes(envelope).body) == record_of(FOUND, ANCHOR.peer_id)
    assert notebook.signed_since(FOUND.epoch + 1) == {}
    notebook.forget_rulings_before(FOUND.epoch + 1)
    assert notebook.signed_since(0) == {}
