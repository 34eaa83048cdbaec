"""What is read is bounded for each author, and what can say nothing about a claim is not kept at all."""

from dataclasses import replace
from types import SimpleNamespace

from dht.contest import Contest
from dht.standing.epoch_reader import EpochReader
from dht.standing.proof_reader import ProofReader
from dht.verdict import Verdict, commit
from tests.dht.judgement.town import ACCUSED, ACCUSER, ANCHORS, EPOCH, PEERS, UP, claim_of

CLAIM = claim_of()
JUROR, FLOODER, STRANGER = PEERS[10:13]


class Shelf:
    """A swarm that holds whatever it is given."""

    def __init__(self, *records):
        self.records = list(records)
        self.checked_here = set()
        """Kinds whose signatures nobody checks beside the event loop."""

    async def read_many(self, kind, keys, forestall=None):
        if forestall is None:
            self.checked_here.add(kind)
        for key in keys:
            yield [
                SimpleNamespace(record=each) for each in self.records if kind == each.KIND and each.key_parts() == key
            ]


def verdict_of(member, number):
    return commit(member, EPOCH, CLAIM.hash, 1, UP, number.to_bytes(32, "big"), CLAIM.t + number)


async def test_of_one_author_and_epoch_so_many_are_kept_and_what_was_read_first_stays():
    """Else an accuser whose claim is about to be found false would take it away, with others that it dates back."""
    shelf = Shelf(verdict_of(FLOODER, 60), verdict_of(JUROR, 1))
    reader = EpochReader(shelf, Verdict, 4, max_of_key=10)
    await reader.read([FLOODER, JUROR], [EPOCH], EPOCH, EPOCH, None)
    shelf.records += [verdict_of(FLOODER, number) for number in range(50)] + [verdict_of(JUROR, 2)]
    for _ in range(3):
        found = await reader.read([FLOODER, JUROR], [EPOCH], EPOCH, EPOCH, None)
    assert sum(each.member == FLOODER for each in found) == 10
    assert {verdict_of(FLOODER, 60), verdict_of(JUROR, 1), verdict_of(JUROR, 2)} < set(found)


def contest(contester, **changes):
    made = Contest(contester, EPOCH, CLAIM.hash, ACCUSER, 2, CLAIM.t + 9)
    return replace(made, **changes)


async def test_what_can_say_nothing_about_a_claim_is_not_kept():
    heard = {contest(who) for who in (ACCUSED, ACCUSER, ANCHORS[0])} | {verdict_of(JUROR, 1)}
    unheard = {
        contest(STRANGER),
        contest(ACCUSED, claim=bytes(32)),
        contest(ACCUSED, epoch=EPOCH + 1),
        commit(JUROR, EPOCH, bytes(32), 1, UP, bytes(32), CLAIM.t),
        commit(JUROR, EPOCH + 1, CLAIM.hash, 1, UP, bytes(32), CLAIM.t),
    }
    shelf = Shelf(*heard, *unheard, CLAIM, claim_of(STRANGER, epoch=EPOCH + 1))
    reader = ProofReader(shelf)
    proofs = await reader.read(PEERS, [ANCHORS[0]], range(EPOCH, EPOCH + 2), 9, None)
    assert {*proofs.contests, *proofs.verdicts} == heard
    assert not shelf.checked_here


async def test_an_accuser_has_room_for_its_claims_and_for_proof_that_it_made_two_for_one_place():
    flood = [claim_of(lane=number) for number in range(100)]
    proofs = await ProofReader(Shelf(*flood)).read([ACCUSER], (), range(EPOCH, EPOCH + 1), 9, None)
    assert len(proofs.claims) == 16
