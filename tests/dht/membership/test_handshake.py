import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.codec import decode, encode
from dht.errors import BadRecord, ProtocolViolation
from dht.identity import Identity
from dht.membership.handshake import (
    Card,
    Initiator,
    Refusal,
    RefusedError,
    Responder,
    membership_key,
    refuse_hello,
    refuse_proof,
)

ALICE, BOB, EVE = (Identity.ephemeral().peer_id for _ in range(3))
KEY = membership_key("lab", b"s" * 32)
CARD_A = Card(b"a" * 16, 1, True, ("/ip4/1.2.3.4/tcp/5",))
CARD_B = Card(b"b" * 16, 2, False, ())


def sides(key_a: bytes = KEY, key_b: bytes = KEY) -> tuple[Initiator, Responder]:
    return Initiator(key_a, ALICE, BOB, os.urandom(32)), Responder(key_b, BOB, ALICE, os.urandom(32))


def test_two_that_know_the_key_admit_each_other_and_exchange_cards():
    alice, bob = sides()
    proof = alice.prove(bob.greet(alice.hello()), CARD_A)
    assert bob.admit(proof) == CARD_A
    assert alice.admit(bob.prove(CARD_B)) == CARD_B


@pytest.mark.parametrize(
    "other",
    [membership_key("lab", None), membership_key("lab2", b"s" * 32), membership_key("lab", b"t" * 32), bytes(32)],
)
def test_neither_admits_one_that_has_another_key(other):
    alice, bob = sides(key_a=other)
    proof = alice.prove(bob.greet(alice.hello()), CARD_A)
    with pytest.raises(RefusedError) as caught:
        bob.admit(proof)
    assert caught.value.refusal == Refusal.WRONG_KEY
    with pytest.raises(ProtocolViolation):
        alice.admit(bob.prove(CARD_B))


def test_public_swarms_of_different_names_have_different_keys():
    keys = {membership_key(name, secret) for name in ("", "a", "b") for secret in (None, b"s" * 32)}
    assert len(keys) == 6


def test_a_proof_does_not_count_for_another_peer():
    alice, bob = sides()
    proof = alice.prove(bob.greet(alice.hello()), CARD_A)
    eve_at_bob = Responder(KEY, BOB, EVE, bob._nonce)
    eve_at_bob.greet(alice.hello())
    with pytest.raises(RefusedError):
        eve_at_bob.admit(proof)


def test_a_proof_does_not_count_a_second_time():
    alice, bob = sides()
    hello = alice.hello()
    proof = alice.prove(bob.greet(hello), CARD_A)
    again = Responder(KEY, BOB, ALICE, os.urandom(32))
    again.greet(hello)
    with pytest.raises(RefusedError):
        again.admit(proof)


def test_a_responders_proof_sent_back_to_it_does_not_count():
    nonce = os.urandom(32)
    reflected = Responder(KEY, BOB, ALICE, nonce)
    reflected.greet(encode([1, nonce]))
    _, card, mac = decode(reflected.prove(CARD_B), 4096)
    with pytest.raises(RefusedError):
        reflected.admit(encode([card, mac]))


def test_a_changed_card_does_not_count():
    alice, bob = sides()
    card, mac = decode(alice.prove(bob.greet(alice.hello()), CARD_A), 4096)
    card[3] = ["/ip4/6.6.6.6/tcp/6"]
    with pytest.raises(RefusedError):
        bob.admit(encode([card, mac]))


def test_another_version_is_named_by_both_sides():
    alice, bob = sides()
    with pytest.raises(RefusedError) as caught:
        bob.greet(encode([7, bytes(32)]))
    assert (caught.value.refusal, caught.value.detail) == (Refusal.VERSION, 7)
    with pytest.raises(RefusedError) as caught:
        alice.prove(encode([7, bytes(32)]), CARD_A)
    assert (caught.value.refusal, caught.value.detail) == (Refusal.VERSION, 7)


@pytest.mark.parametrize("refusal", Refusal)
def test_a_refusal_is_understood_at_either_step(refusal):
    alice, bob = sides()
    with pytest.raises(RefusedError) as caught:
        alice.prove(refuse_hello(refusal), CARD_A)
    assert caught.value.refusal == refusal
    alice.prove(bob.greet(alice.hello()), CARD_A)
    with pytest.raises(RefusedError) as caught:
        alice.admit(refuse_proof(refusal))
    assert caught.value.refusal == refusal


@given(st.binary(max_size=200))
def test_junk_is_refused_at_every_step(junk):
    for step in (
        lambda: sides()[1].greet(junk),
        lambda: sides()[0].prove(junk, CARD_A),
        lambda: sides()[1].admit(junk),
        lambda: sides()[0].admit(junk),
    ):
        with pytest.raises((BadRecord, ProtocolViolation)):
            step()


@given(
    st.lists(
        st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=40), st.text(max_size=9), st.just([]), st.booleans()),
        max_size=4,
    )
)
def test_canonical_junk_is_refused_at_every_step(fields):
    test_junk_is_refused_at_every_step.hypothesis.inner_test(encode(fields))


def test_nine_addresses_are_too_many():
    alice, bob = sides()
    many = Card(b"a" * 16, 1, True, ("/ip4/1.2.3.4/tcp/5",) * 9)
    with pytest.raises(BadRecord, match="addresses"):
        bob.admit(alice.prove(bob.greet(alice.hello()), many))
