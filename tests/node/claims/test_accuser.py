"""Three claims an epoch go against as many liars as there are, the worst first, and not twice against one."""

from dataclasses import replace

import pytest

from dht.claim import MAX_EVIDENCE_BYTES
from dht.errors import PeerUnreachable
from dht.identity import Identity
from dht.rules import Rules
from node.claims.accuser import MAX_HELD, MAX_HELD_BYTES, Accusation, Accuser
from node.claims.notebook import Notebook
from node.claims.shelf import Shelf
from tests.node.check.session import EPOCH, held

RULES = Rules()
LIARS = [Identity.ephemeral() for _ in range(4)]


class Swarm:
    def __init__(self):
        self.stored, self.is_down = [], False

    async def store(self, signed):
        if self.is_down:
            raise PeerUnreachable("nobody answers")
        self.stored.append(signed)
        return True


@pytest.fixture
def accuser(tmp_path):
    notebook = Notebook.open(tmp_path / "claims.sqlite")
    end_s = RULES.start_of(EPOCH + 1) - 1  # All three places are open.
    yield Accuser(Swarm(), Identity.ephemeral(), Shelf(tmp_path / "evidence"), notebook, lambda: end_s)
    notebook.close()


def accusation(liar, error_ppm, number=0):
    session = held(bytes([number]) * 16, provider=liar)
    body = session.receipt.to_body()
    return Accusation(
        session.evidence, session.offer.session, body, liar.sign(session.receipt.KIND, body), error_ppm
    )  # fmt: skip


async def test_the_worst_of_each_liar_is_claimed_and_the_worst_liars_first(accuser):
    for number, (liar, error_ppm) in enumerate([(0, 900), (0, 800), (1, 300), (2, 200), (3, 100), (3, 150)]):
        accuser.hold(accusation(LIARS[liar], error_ppm, number))
    claims = await accuser.claim(RULES)
    assert [(claim.accused, claim.error_ppm) for claim in claims] == [
        (LIARS[0].peer_id, 900), (LIARS[1].peer_id, 300), (LIARS[2].peer_id, 200)
    ]  # fmt: skip
    assert len(accuser._swarm.stored) == 3
    assert await accuser.claim(RULES) == [], "an epoch has three places"


async def test_who_is_on_trial_or_out_is_spared_and_stays_held(accuser):
    accuser.hold(accusation(LIARS[0], 900))
    accuser.hold(accusation(LIARS[1], 100))
    assert [claim.accused for claim in await accuser.claim(RULES, {LIARS[0].peer_id})] == [LIARS[1].peer_id]
    assert [claim.accused for claim in await accuser.claim(RULES)] == [LIARS[0].peer_id]


async def test_names_that_are_thrown_away_use_up_no_place_that_a_trusted_liar_is_to_have(accuser):
    first = {LIARS[0].peer_id}
    assert await accuser.claim(RULES, first=first) == [], "now it knows"
    accuser.hold(accusation(LIARS[0], 100))
    for number in range(MAX_HELD + 5):
        accuser.hold(accusation(Identity.ephemeral(), 900 + number, number + 1))
    assert len(accuser._held) == MAX_HELD
    claims = await accuser.claim(RULES, first=first)
    assert [claim.error_ppm for claim in claims] == [100, 900 + MAX_HELD + 4, 900 + MAX_HELD + 3]
    assert claims[0].accused == LIARS[0].peer_id


async def test_nobody_hides_behind_a_worse_one(accuser):
    accuser.hold(accusation(LIARS[1], 1))
    for number in range(MAX_HELD + 5):
        accuser.hold(accusation(LIARS[0], 900 + number, number))
    assert len(accuser._held) == MAX_HELD
    claims = await accuser.claim(RULES)
    assert [(claim.accused, claim.error_ppm) for claim in claims] == [
        (LIARS[0].peer_id, 900 + MAX_HELD + 4), (LIARS[1].peer_id, 1)
    ]  # fmt: skip


def enlarged(accusation, num_bytes):
    return replace(accusation, evidence=replace(accusation.evidence, given=bytes(num_bytes)))


async def test_what_is_held_takes_bounded_memory_and_the_worst_of_each_liar_is_kept(accuser):
    large = MAX_HELD_BYTES // 3
    for number, (liar, error_ppm) in enumerate([(0, 900), (0, 800), (0, 700), (1, 100), (2, 200)]):
        accuser.hold(enlarged(accusation(LIARS[liar], error_ppm, number), large))
        assert sum(each.evidence.num_bytes for each in accuser._held.values()) <= MAX_HELD_BYTES
    assert [each.error_ppm for each in accuser._held.values()] == [900, 200]
    accuser.hold(enlarged(accusation(LIARS[3], 999), MAX_EVIDENCE_BYTES + 1))
    assert len(accuser._held) == 2, "what is too large to be handed out pushes nothing out"


async def test_what_is_too_old_to_be_claimed_is_let_go(accuser):
    old = accusation(LIARS[0], 900)
    session = held(provider=LIARS[0], epoch=EPOCH - 3)
    accuser.hold(replace(old, receipt=session.receipt.to_body()))
    assert await accuser.claim(RULES) == []
    assert accuser._held == {}


async def test_nothing_is_claimed_whose_evidence_would_not_hold(accuser):
    """A liar that gets an accuser to publish such a thing three times would have silenced it."""
    true = accusation(LIARS[0], 900)
    accuser.hold(replace(true, evidence=replace(true.evidence, given=bytes(len(true.evidence.given)))))
    accuser.hold(accusation(LIARS[1], 100))
    assert [(claim.accused, claim.number) for claim in await accuser.claim(RULES)] == [(LIARS[1].peer_id, 1)]
    assert accuser._notebook.numbers_left(EPOCH) == [0, 2]


async def test_who_has_lost_its_notebook_gives_no_number_away_twice(accuser, tmp_path):
    """Two claims for one place are a false claim, whatever they are of."""
    accuser.hold(accusation(LIARS[0], 900))
    published = await accuser.claim(RULES)
    new = Notebook.open(tmp_path / "new.sqlite")
    again = Accuser(accuser._swarm, accuser._identity, accuser._shelf, new, accuser._clock)
    again.hold(accusation(LIARS[1], 800))
    assert [claim.number for claim in await again.claim(RULES, (), published)] == [1]
    new.close()


async def test_a_claim_that_nobody_took_is_published_again_and_one_that_stands_is_not(accuser):
    accuser._swarm.is_down = True
    accuser.hold(accusation(LIARS[0], 900))
    with pytest.raises(PeerUnreachable):
        await accuser.claim(RULES)
    accuser._swarm.is_down = False
    await accuser.publish_again(RULES, EPOCH)
    (signed,) = accuser._swarm.stored
    assert signed.record.accused == LIARS[0].peer_id
    await accuser.publish_again(RULES, EPOCH, {signed.record.hash})
    assert len(accuser._swarm.stored) == 1
