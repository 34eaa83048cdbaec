"""One case a claim, with what was signed about it and nothing else."""

from dataclasses import replace

from dht.contest import Contest
from dht.judgement.docket import open_cases, record_id
from dht.verdict import commit
from tests.dht.judgement.town import ACCUSED, ACCUSER, PEERS, UP, claim_of

FIRST = claim_of(lane=1)
SECOND = claim_of(lane=2, number=1, t=FIRST.t + 1)
DENIAL = Contest(ACCUSED, FIRST.epoch, FIRST.hash, ACCUSER, 1, FIRST.t)
COMMIT = commit(PEERS[5], FIRST.epoch, FIRST.hash, 1, UP, bytes(32), FIRST.t)


def test_cases_stand_in_the_order_of_their_claims_and_hold_what_is_about_them():
    first, second = open_cases([SECOND, FIRST, SECOND], [DENIAL, DENIAL], [COMMIT, COMMIT])
    assert (first.claim, second.claim) == (FIRST, SECOND)
    assert (first.contests, first.verdicts) == ({DENIAL}, {COMMIT})
    assert not second.contests | second.verdicts
    assert (first.accused, first.work, first.chunk) == (ACCUSED, FIRST.work, FIRST.chunk)


def test_claims_of_one_second_stand_in_the_order_of_their_hashes():
    twins = [claim_of(lane=lane, number=lane % 3) for lane in range(3)]
    assert [case.hash for case in open_cases(twins, [], [])] == sorted(claim.hash for claim in twins)


def test_what_names_another_epoch_claim_or_accuser_is_left_out():
    contests = [
        replace(DENIAL, epoch=DENIAL.epoch + 1), replace(DENIAL, claim=bytes(32)), replace(DENIAL, accuser=PEERS[7])
    ]  # fmt: skip
    verdicts = [replace(COMMIT, epoch=COMMIT.epoch + 1), replace(COMMIT, claim=bytes(32))]
    (case,) = open_cases([FIRST], contests, verdicts)
    assert not case.contests | case.verdicts


def test_a_claims_id_is_its_hash():
    assert record_id(FIRST) == FIRST.hash != record_id(SECOND)
