"""What claims, contests and verdicts may say, and what nobody believes of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.claim import MAX_EVIDENCE_BYTES, Claim
from dht.contest import Contest
from dht.errors import BadRecord
from dht.identity import Identity
from dht.records import seal
from dht.rules import DEFAULT_RULES, Rules
from dht.verdict import Opinion, Verdict, VerdictPhase, commit, commitment_of, reveal
from dht.work import MAX_COUNT, MAX_LANE, MAX_SEQ, Receipt, WorkKind
from tests.dht.samples import EPOCH, EPOCH_BEGAN, receipt
from tests.dht.test_validation import as_stored
from tests.dht.test_work import NOW, refusal

PROVIDER, ACCUSER, MEMBER = (Identity.ephemeral() for _ in range(3))
HOUR_S = 3600


def claim(work: Receipt | None = None, **changes) -> Claim:
    body = (work or receipt(PROVIDER, ACCUSER)).to_body()
    made = Claim(
        accuser=ACCUSER.peer_id,
        epoch=EPOCH,
        number=0,
        receipt=body,
        receipt_signature=PROVIDER.sign(2, body),
        session=bytes(16),
        segment=0,
        index=4,
        error_ppm=500_000,
        evidence=bytes(32),
        evidence_bytes=1000,
        t=EPOCH_BEGAN + 90,
    )
    return replace(made, **changes)


CLAIM = claim()
CONTEST = Contest(PROVIDER.peer_id, EPOCH, CLAIM.hash, ACCUSER.peer_id, 1, CLAIM.t)
SALT = b"s" * 32
COMMIT = commit(MEMBER.peer_id, EPOCH, CLAIM.hash, 1, Opinion.UPHELD, SALT, CLAIM.t)
REVEAL = reveal(MEMBER.peer_id, EPOCH, CLAIM.hash, 1, Opinion.UPHELD, SALT, 500_000, CLAIM.t)
AUTHORS = {each.peer_id: each for each in (PROVIDER, ACCUSER, MEMBER)}


def stored(record, rules=DEFAULT_RULES):
    return as_stored(seal(record, *(AUTHORS[author] for author in record.authors), rules=rules))


# ---------------------------------------------------------------------------------------------------------- claims


def test_a_claim_says_of_the_accused_only_what_that_one_signed():
    assert refusal(stored(CLAIM)) is None
    assert (CLAIM.accused, CLAIM.work) == (PROVIDER.peer_id, receipt(PROVIDER, ACCUSER))
    assert CLAIM.chunk == (CLAIM.work.slot, bytes(16), 0, 4)


def test_the_longest_claim_fits():
    most = receipt(
        PROVIDER, ACCUSER, epoch=2**32 - 1, lane=MAX_LANE, seq=MAX_SEQ, start=0, end=4096, sessions=MAX_COUNT,
        amount=2**41, work=2**53, bytes_in=MAX_COUNT, bytes_out=MAX_COUNT, t_first=0, t_last=2**40,
    )  # fmt: skip
    large = claim(
        most, epoch=2**32 - 1, number=2, segment=2**20, index=2**20, error_ppm=10**9,
        evidence_bytes=MAX_EVIDENCE_BYTES, t=2**40,
    )  # fmt: skip
    assert len(seal(large, ACCUSER).envelope) <= Claim.MAX_BYTES


def test_an_accuser_has_three_places_in_an_epoch_and_each_holds_one_claim():
    places = {seal(claim(number=number), ACCUSER).subkey for number in range(3)}
    assert len(places) == 3
    with pytest.raises(BadRecord, match="number"):
        Claim.from_body(claim(number=3).to_body())
    again, first = (seal(each, ACCUSER) for each in (claim(error_ppm=1), CLAIM))
    assert (again.key, again.subkey, again.expires_s) == (first.key, first.subkey, first.expires_s)


def test_a_slanderer_cannot_make_up_a_receipt():
    body = receipt(PROVIDER, ACCUSER).to_body()
    for signature in (ACCUSER.sign(2, body), PROVIDER.sign(5, body), bytes(64)):
        assert refusal(stored(replace(CLAIM, receipt_signature=signature))) == "signature"
    other = receipt(PROVIDER, ACCUSER, amount=65, work=260).to_body()
    assert refusal(stored(replace(CLAIM, receipt=other))) == "signature"


@pytest.mark.parametrize(
    "change",
    [
        {"accuser": PROVIDER.peer_id},
        {"receipt": b""},
        {"receipt": b"\x90"},
        {"epoch": EPOCH - 1},
        {"epoch": EPOCH + 2},
        {"evidence_bytes": 0},
        {"evidence_bytes": MAX_EVIDENCE_BYTES + 1},
        {"session": bytes(15)},
        {"error_ppm": 10**9 + 1},
    ],
)
def test_a_claim_that_contradicts_itself_is_refused(change):
    with pytest.raises(BadRecord):
        Claim.from_body(replace(CLAIM, **change).to_body())


def test_work_without_chunks_cannot_be_claimed():
    relayed = receipt(PROVIDER, ACCUSER, work_kind=WorkKind.RELAY, work=64)
    audited = receipt(PROVIDER, ACCUSER, work_kind=WorkKind.AUDIT)
    for work in (relayed, audited, receipt(PROVIDER, ACCUSER, amount=0, work=0)):
        with pytest.raises(BadRecord, match="no chunks"):
            Claim.from_body(claim(work).to_body())


def test_a_claim_is_made_in_the_epoch_of_the_receipt_or_the_next_one():
    later = claim(epoch=EPOCH + 1, t=EPOCH_BEGAN + 21600)
    assert refusal(stored(later), EPOCH_BEGAN + 21600) is None
    assert refusal(stored(claim(t=EPOCH_BEGAN + 21600 + 121)), EPOCH_BEGAN + 22000) == "outside its epoch"
    assert refusal(stored(claim(t=EPOCH_BEGAN - 121))) == "outside its epoch"
    assert refusal(stored(later), EPOCH_BEGAN + 21600 - 121) == "from the future"


@pytest.mark.parametrize("record", [CLAIM, CONTEST, COMMIT, REVEAL])
def test_claims_contests_and_verdicts_outlive_a_convictions_half_life(record):
    assert record.expires_s(DEFAULT_RULES) == (EPOCH + 361) * 21600


# --------------------------------------------------------------------------------------------- contests and verdicts


def test_a_contest_and_a_verdict_are_signed_while_the_claim_is_on_trial():
    for record in (CONTEST, COMMIT, REVEAL):
        assert refusal(stored(record)) is None
        assert refusal(stored(replace(record, t=int(NOW) + 121))) == "from the future"
        assert refusal(stored(replace(record, t=EPOCH_BEGAN - 121))) == "outside its trial"
        last = EPOCH_BEGAN + 3 * 21600
        assert refusal(stored(replace(record, t=last + 120)), last + HOUR_S) is None
        assert refusal(stored(replace(record, t=last + 121)), last + HOUR_S) == "outside its trial"
        assert refusal(stored(record), EPOCH_BEGAN - 121) == "from the future"


def test_an_accuser_denies_no_claim_of_its_own_and_may_appeal():
    mine = replace(CONTEST, contester=ACCUSER.peer_id)
    with pytest.raises(BadRecord):
        Contest.from_body(mine.to_body())
    assert refusal(stored(replace(mine, level=2))) is None
    for level in (0, 4):
        with pytest.raises(BadRecord):
            Contest.from_body(replace(CONTEST, level=level).to_body())


def test_levels_and_phases_stand_beside_each_other():
    places = {stored(replace(CONTEST, level=level)).subkey for level in (1, 2, 3)}
    places |= {stored(replace(each, level=level)).subkey for level in (1, 2, 3) for each in (COMMIT, REVEAL)}
    assert len(places) == 9


@pytest.mark.parametrize(
    "record",
    [
        replace(COMMIT, opinion=Opinion.UPHELD),
        replace(COMMIT, salt=SALT),
        replace(COMMIT, error_ppm=1),
        replace(COMMIT, commitment=b""),
        replace(REVEAL, opinion=Opinion.SECRET),
        replace(REVEAL, salt=b""),
        replace(REVEAL, commitment=SALT),
        replace(REVEAL, phase=VerdictPhase.COMMIT),
        replace(COMMIT, phase=VerdictPhase.REVEAL),
        replace(REVEAL, level=0),
    ],
)
def test_a_commitment_tells_nothing_and_what_is_opened_tells_all(record):
    with pytest.raises(BadRecord):
        Verdict.from_body(record.to_body())


def test_what_is_opened_is_what_was_committed_to_and_a_copied_commitment_opens_for_nobody_else():
    assert REVEAL.committed == COMMIT.committed == COMMIT.commitment
    for change in ({"opinion": Opinion.REFUTED}, {"salt": b"t" * 32}, {"level": 2}, {"claim": SALT}):
        assert replace(REVEAL, **change).committed != COMMIT.commitment
    assert replace(REVEAL, member=ACCUSER.peer_id).committed != COMMIT.commitment
    assert len({commitment_of(MEMBER.peer_id, CLAIM.hash, 1, each, SALT) for each in Opinion}) == len(Opinion)


def test_rules_of_another_swarm_give_another_life():
    rules = Rules(epoch_s=5, window_epochs=8, evidence_epochs=16)
    epoch = rules.epoch_of(NOW)
    made = replace(COMMIT, epoch=epoch, t=int(NOW))
    assert refusal(stored(made, rules), rules=rules) is None
    assert made.expires_s(rules) == (epoch + 17) * 5


@pytest.mark.parametrize("record", [CLAIM, CONTEST, COMMIT, REVEAL])
@given(data=st.data())
def test_no_bytes_make_them_raise_anything_else(record, data):
    assert type(record).from_body(record.to_body()) == record
    good = record.to_body()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.binary(min_size=1, max_size=2)) + good[at + 1 :]
    try:
        read = type(record).from_body(changed)
    except BadRecord:
        return
    assert read.to_body() == changed
