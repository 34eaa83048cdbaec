"""What an anchor's rulings may say, where they stand, and that two that differ stand beside each other."""

from dataclasses import replace

import pytest

from dht.claim import MAX_CHUNK
from dht.errors import BadRecord
from dht.identity import Identity
from dht.records import MAX_TIME_S, seal
from dht.rules import DEFAULT_RULES
from dht.ruling import TERM_EPOCHS, Backer, Outcome, RulingRecord, term_of
from dht.work import MAX_LANE, WorkKind
from tests.dht.test_claim import CLAIM, HOUR_S
from tests.dht.test_validation import as_stored
from tests.dht.test_work import NOW, refusal

ANCHOR = Identity.ephemeral()
EPOCH = CLAIM.epoch
RULING = RulingRecord(
    ANCHOR.peer_id, EPOCH, CLAIM.hash, CLAIM.accuser, CLAIM.number, CLAIM.accused, CLAIM.work.consumer,
    CLAIM.work.epoch, CLAIM.work.lane, CLAIM.work.work_kind, CLAIM.session, CLAIM.segment, CLAIM.index,
    Outcome.UPHELD, Backer.NOBODY, CLAIM.t,
)  # fmt: skip


def stored(record):
    return as_stored(seal(record, ANCHOR))


def test_a_ruling_says_what_the_claim_is_about_and_lives_as_long_as_evidence():
    assert refusal(stored(RULING)) is None
    assert RULING.chunk == CLAIM.chunk
    assert RULING.expires_s(DEFAULT_RULES) == CLAIM.expires_s(DEFAULT_RULES)


def test_the_longest_ruling_fits():
    most = replace(
        RULING, epoch=2**32, receipt_epoch=2**32, lane=MAX_LANE, segment=MAX_CHUNK, index=MAX_CHUNK,
        settled_s=MAX_TIME_S,
    )  # fmt: skip
    assert len(seal(most, ANCHOR).envelope) <= RulingRecord.MAX_BYTES


def test_rulings_of_sixteen_epochs_stand_under_one_key_of_their_anchor():
    first = EPOCH // TERM_EPOCHS * TERM_EPOCHS
    keys = {seal(replace(RULING, epoch=each, receipt_epoch=each), ANCHOR).key for each in range(first, first + 16)}
    assert len(keys) == 1
    after = replace(RULING, epoch=first + 16, receipt_epoch=first + 16)
    assert seal(after, ANCHOR).key not in keys
    assert term_of(after.epoch) == term_of(first) + 1


def test_what_is_signed_again_is_the_same_bytes_and_what_differs_replaces_nothing():
    assert seal(RULING, ANCHOR) == seal(replace(RULING), ANCHOR)
    changes = ({"outcome": Outcome.REJECTED}, {"settled_s": RULING.settled_s + 1}, {"backer": Backer.ACCUSED})
    assert len({replace(RULING, **change).subkey for change in ({}, *changes)}) == 4


def test_nobody_rules_in_an_anchors_name():
    sealed, other = stored(RULING), Identity.ephemeral()
    forged = seal(replace(RULING, anchor=other.peer_id), other)
    assert refusal(replace(sealed, value=forged.envelope)) in ("key", "owner")
    body = RULING.to_body()
    envelope = seal(RULING, ANCHOR).envelope.replace(ANCHOR.sign(RULING.KIND, body), other.sign(RULING.KIND, body))
    assert refusal(replace(sealed, value=envelope)) == "signature"


def test_a_ruling_stands_by_now_and_since_the_claims_trial():
    began = DEFAULT_RULES.start_of(EPOCH)
    assert refusal(stored(replace(RULING, settled_s=int(NOW) + 121))) == "from the future"
    last = began + 3 * 21600
    assert refusal(stored(replace(RULING, settled_s=last + 120)), last + HOUR_S) is None
    assert refusal(stored(replace(RULING, settled_s=last + 121)), last + HOUR_S) == "outside its trial"
    assert refusal(stored(replace(RULING, settled_s=began - 121))) == "outside its trial"
    assert refusal(stored(RULING), began - 121) == "from the future"


@pytest.mark.parametrize(
    "change",
    [
        {"accuser": RULING.provider},
        {"consumer": RULING.provider},
        {"number": 3},
        {"claim": bytes(31)},
        {"session": bytes(15)},
        {"work_kind": WorkKind.RELAY},
        {"receipt_epoch": EPOCH + 1},
        {"receipt_epoch": EPOCH - 2},
        {"segment": MAX_CHUNK + 1},
        {"settled_s": MAX_TIME_S + 1},
    ],
)
def test_a_ruling_on_what_nobody_could_have_claimed_is_refused(change):
    with pytest.raises(BadRecord):
        RulingRecord.from_body(replace(RULING, **change).to_body())
