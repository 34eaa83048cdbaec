"""What a receipt may say, and what nobody believes of one."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.equivocation import Equivocation, find_equivocations, prove
from dht.errors import BadRecord
from dht.ident import Affiliation, Ident, Role, Succession, find_proof, proof_bits
from dht.identity import Identity
from dht.records import Envelope, seal
from dht.rules import DEFAULT_RULES, MAX_SKEW_S, Rules
from dht.snapshot import Snapshot, digest_of
from dht.validation import RecordValidator
from dht.work import MAX_AMOUNT_PER_S, MAX_COUNT, MAX_LANE, MAX_SEQ, Receipt, WorkKind
from tests.dht.samples import EPOCH, EPOCH_BEGAN, receipt
from tests.dht.test_validation import as_stored

PROVIDER, CONSUMER, OTHER = (Identity.ephemeral() for _ in range(3))
NOW = EPOCH_BEGAN + 100
PLAIN = receipt(PROVIDER, CONSUMER)


def refusal(record, now_s=NOW, rules=DEFAULT_RULES):
    validator = RecordValidator(clock=lambda: now_s, rules=rules)
    validator.validate(record)
    return next(iter(validator.refusals), None)


def sealed(record=PLAIN, *authors, rules=DEFAULT_RULES):
    return seal(record, *(authors or (PROVIDER, CONSUMER)), rules=rules)


@given(
    st.sampled_from(WorkKind), st.integers(0, MAX_LANE), st.integers(1, MAX_SEQ), st.integers(0, 10**6),
    st.integers(0, 10), st.integers(1, 90),
)  # fmt: skip
def test_a_receipt_is_read_as_it_was_written_and_its_newest_lives_longest(kind, lane, seq, amount, start, blocks):
    work = amount * (1 if kind is WorkKind.RELAY else blocks)
    last = PLAIN.t_first + amount // MAX_AMOUNT_PER_S
    made = replace(
        PLAIN,
        work_kind=kind,
        lane=lane,
        seq=seq,
        amount=amount,
        start=start,
        end=start + blocks,
        work=work,
        t_last=last,
    )
    assert Receipt.from_body(made.to_body()) == made
    assert made.expires_s(DEFAULT_RULES) > replace(made, seq=seq - 1).expires_s(DEFAULT_RULES)


def test_the_longest_receipt_takes_420_bytes_at_most():
    most = replace(
        PLAIN, epoch=2**32 - 1, lane=MAX_LANE, seq=MAX_SEQ, start=0, end=4096, sessions=MAX_COUNT, amount=2**41,
        work=2**53, bytes_in=MAX_COUNT, bytes_out=MAX_COUNT, t_first=0, t_last=2**40,
    )  # fmt: skip
    assert len(sealed(most).envelope) <= Receipt.MAX_BYTES <= 420


def test_a_receipt_stands_under_its_provider_and_epoch():
    signed = sealed()
    assert refusal(as_stored(signed)) is None
    assert signed.expires_s == (EPOCH + 57) * 21600 + 1 / 1024
    assert sealed(replace(PLAIN, lane=8)).subkey != signed.subkey != sealed(replace(PLAIN, epoch=EPOCH)).key


@pytest.mark.parametrize(
    "changes",
    [
        {"work": 255},
        {"work": 64},
        {"amount": 10**8, "work": 4 * 10**8},
        {"consumer": PROVIDER.peer_id},
        {"start": 4},
        {"seq": 0},
        {"t_last": PLAIN.t_first - 1},
        {"sessions": 0},
        {"commitment": bytes(31)},
        {"profile": bytes(33)},
    ],
)
def test_what_contradicts_itself_is_refused(changes):
    with pytest.raises(BadRecord):
        Receipt.from_body(replace(PLAIN, **changes).to_body())
    body = replace(PLAIN, **changes).to_body()
    envelope = Envelope(2, body, (PROVIDER.sign(2, body), CONSUMER.sign(2, body))).to_bytes()
    assert refusal(replace(as_stored(sealed()), value=envelope)) == "malformed"


def test_an_unknown_kind_of_work_is_refused():
    body = PLAIN.to_body()
    at = body.index(bytes([7, 1, 1]))  # lane, kind of work, seq
    for kind in (0, 7, 100):
        with pytest.raises(BadRecord, match="work_kind"):
            Receipt.from_body(body[:at] + bytes([7, kind, 1]) + body[at + 3 :])


@pytest.mark.parametrize(
    ("changes", "now_s", "reason"),
    [
        ({"epoch": EPOCH + 1, "t_first": EPOCH_BEGAN + 21600, "t_last": EPOCH_BEGAN + 21600}, NOW, "from the future"),
        ({"t_first": EPOCH_BEGAN - MAX_SKEW_S - 1}, NOW, "outside its epoch"),
        ({"t_last": EPOCH_BEGAN + 21600 + MAX_SKEW_S + 1}, NOW, "outside its epoch"),
        ({}, EPOCH_BEGAN - MAX_SKEW_S - 1, "from the future"),
        ({}, EPOCH_BEGAN + 57 * 21600 + 1, "expired"),
    ],
)
def test_a_receipt_belongs_to_an_epoch_that_has_begun(changes, now_s, reason):
    assert refusal(as_stored(sealed(replace(PLAIN, **changes))), now_s) == reason


def test_nobody_lengthens_or_shortens_or_moves_it():
    stored = as_stored(sealed())
    for by in (1.0, -1.0, 3600.0, -3600.0, 1 / 1024):
        assert refusal(replace(stored, expiration_time=stored.expiration_time + by)) == "expiry"
    assert refusal(replace(stored, key=as_stored(sealed(replace(PLAIN, epoch=EPOCH - 1))).key)) == "key"
    assert refusal(replace(stored, subkey=as_stored(sealed(replace(PLAIN, lane=8))).subkey)) == "owner"


def test_rules_of_another_swarm_give_another_life():
    rules = Rules(epoch_s=5, window_epochs=8)
    epoch = rules.epoch_of(NOW)
    made = replace(PLAIN, epoch=epoch, t_first=NOW, t_last=NOW)
    assert refusal(as_stored(sealed(made, rules=rules)), rules=rules) is None
    assert refusal(as_stored(sealed(made, rules=rules))) == "from the future"


def test_one_signature_or_somebody_elses_is_not_enough():
    body = PLAIN.to_body()
    by_provider, by_consumer = PROVIDER.sign(2, body), CONSUMER.sign(2, body)
    for signatures in (
        (by_provider,),
        (by_consumer,),
        (by_provider, by_provider),
        (by_provider, bytes(64)),
        (by_provider, OTHER.sign(2, body)),
        (by_provider, CONSUMER.sign(3, body)),  # signed as an audit
        (by_consumer, by_provider),
        (),
    ):
        assert refusal(replace(as_stored(sealed()), value=Envelope(2, body, signatures).to_bytes())) == "signature"
    too_many = Envelope(2, body, (by_provider, by_consumer, by_consumer)).to_bytes()
    assert refusal(replace(as_stored(sealed()), value=too_many)) == "oversize"


# ------------------------------------------------------------------------------------------------------ equivocation


def opened(*records):
    return [Envelope.from_bytes(sealed(record).envelope) for record in records]


def test_two_receipts_for_the_same_prove_that_both_authors_lied():
    one, other = opened(PLAIN, replace(PLAIN, amount=65, work=260))
    proofs = list(find_equivocations([one, other, one, *opened(replace(PLAIN, seq=2))]))
    assert [proof.accused for proof in proofs] == [PROVIDER.peer_id, CONSUMER.peer_id]
    for proof in proofs:
        assert proof == prove(proof.accused, other, one) == Equivocation.from_body(proof.to_body())
        signed = seal(proof)
        assert refusal(as_stored(signed)) is None
        assert len(signed.envelope) <= 820
        assert signed.expires_s == (EPOCH + 361) * 21600


@pytest.mark.parametrize("changes", [{"seq": 2}, {"lane": 8}, {"work_kind": WorkKind.PREFILL}, {}])
def test_receipts_that_do_not_contradict_each_other_prove_nothing(changes):
    with pytest.raises(ValueError):
        prove(PROVIDER.peer_id, *opened(PLAIN, replace(PLAIN, **changes)))


def test_a_made_up_proof_is_refused():
    proof = prove(PROVIDER.peer_id, *opened(PLAIN, replace(PLAIN, amount=65, work=260)))
    for changes in ({"first_signature": bytes(64)}, {"second_signature": proof.first_signature}):
        fake = replace(proof, **changes)
        assert refusal(as_stored(seal(fake))) == "signature"
    with pytest.raises(BadRecord):
        Equivocation.from_body(replace(proof, accused=OTHER.peer_id).to_body())
    with pytest.raises(BadRecord):
        Equivocation.from_body(replace(proof, first=proof.second, second=proof.first).to_body())
    with pytest.raises(BadRecord):
        Equivocation.from_body(replace(proof, first=b"junk").to_body())


# ---------------------------------------------------------------------------------------- identities and snapshots


def test_an_identity_needs_as_much_work_as_the_swarm_asks():
    rules = Rules(proof_of_work_bits=8)
    nonce = find_proof(PROVIDER.peer_id, EPOCH, 8)
    ident = Ident(PROVIDER.peer_id, EPOCH, EPOCH, nonce, Role.SERVER, "")
    assert refusal(as_stored(seal(ident, PROVIDER, rules=rules)), rules=rules) is None
    lazy = replace(ident, nonce=next(n for n in range(99) if proof_bits(PROVIDER.peer_id, EPOCH, n) < 8))
    assert refusal(as_stored(seal(lazy, PROVIDER, rules=rules)), rules=rules) == "proof of work"
    renewed = replace(ident, epoch=EPOCH + 1)
    assert seal(renewed, PROVIDER).subkey == seal(ident, PROVIDER).subkey
    assert renewed.expires_s(rules) > ident.expires_s(rules)
    with pytest.raises(BadRecord):
        Ident.from_body(replace(ident, created_epoch=EPOCH + 1).to_body())


@pytest.mark.parametrize("num_bits", [0, 1, 6, 12])
def test_a_proof_that_was_found_is_as_hard_as_it_should_be(num_bits):
    peer_id = Identity.from_seed(bytes(32)).peer_id
    nonce = find_proof(peer_id, EPOCH, num_bits)
    assert proof_bits(peer_id, EPOCH, nonce) >= num_bits
    assert find_proof(peer_id, EPOCH, num_bits) == nonce


def test_a_proof_is_for_one_identity_and_one_epoch():
    alice, bob = (Identity.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
    nonce = find_proof(alice, EPOCH, 12)
    assert max(proof_bits(bob, EPOCH, nonce), proof_bits(alice, EPOCH + 1, nonce)) < 12


@pytest.mark.parametrize("kind", [Succession, Affiliation])
def test_a_succession_and_an_affiliation_need_both(kind):
    made = kind(PROVIDER.peer_id, OTHER.peer_id, EPOCH)
    assert refusal(as_stored(seal(made, PROVIDER, OTHER))) is None
    body, number = made.to_body(), kind.KIND
    half = Envelope(number, body, (PROVIDER.sign(number, body), PROVIDER.sign(number, body))).to_bytes()
    assert refusal(replace(as_stored(seal(made, PROVIDER, OTHER)), value=half)) == "signature"
    with pytest.raises(BadRecord):
        kind.from_body(kind(PROVIDER.peer_id, PROVIDER.peer_id, EPOCH).to_body())


def test_a_snapshot_is_of_epochs_that_have_ended_and_does_not_depend_on_the_order():
    assert digest_of([b"a", b"b", b"a"]) == digest_of([b"b", b"a"]) != digest_of([b"b"])
    made = Snapshot(PROVIDER.peer_id, EPOCH - 3, EPOCH - 1, 2, digest_of([b"a", b"b"]), bytes(32))
    assert refusal(as_stored(seal(made, PROVIDER))) is None
    assert refusal(as_stored(seal(replace(made, epoch=EPOCH), PROVIDER))) == "from the future"


def test_a_snapshot_names_no_more_epochs_than_stand_on_the_dht_at_once():
    rules = DEFAULT_RULES
    whole = Snapshot(PROVIDER.peer_id, EPOCH - rules.window_epochs, EPOCH - 1, 0, digest_of([]), bytes(32))
    assert refusal(as_stored(seal(whole, PROVIDER))) is None
    for first_epoch in (whole.first_epoch - 1, 0):
        longer = replace(whole, first_epoch=first_epoch)
        assert refusal(as_stored(seal(longer, PROVIDER))) == "longer than a window"


@pytest.mark.parametrize("kind", [Receipt, Equivocation, Ident, Succession, Affiliation, Snapshot])
@given(data=st.data())
def test_no_bytes_make_a_record_raise_anything_else(kind, data):
    body = data.draw(st.binary(max_size=64))
    with pytest.raises(BadRecord):
        kind.from_body(body)
    good = {
        Receipt: PLAIN.to_body(),
        Ident: Ident(PROVIDER.peer_id, 1, 2, 3, Role.CLIENT, "").to_body(),
        Succession: Succession(PROVIDER.peer_id, OTHER.peer_id, EPOCH).to_body(),
        Affiliation: Affiliation(PROVIDER.peer_id, OTHER.peer_id, EPOCH).to_body(),
        Snapshot: Snapshot(PROVIDER.peer_id, 1, 2, 3, bytes(32), bytes(32)).to_body(),
        Equivocation: prove(PROVIDER.peer_id, *opened(PLAIN, replace(PLAIN, amount=65, work=260))).to_body(),
    }[kind]
    at = data.draw(st.integers(0, len(good) - 1))
    changed = good[:at] + data.draw(st.binary(min_size=1, max_size=2)) + good[at + 1 :]
    try:
        record = kind.from_body(changed)
    except BadRecord:
        return
    assert record.to_body() == changed
    assert {field.name for field in fields(record)}
