import hashlib
import json
from dataclasses import replace

import msgpack
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from dht import identity_export
from dht.errors import IdentityDamaged, WrongPassphrase
from dht.identity import Identity
from dht.identity_export import Cost, exported_peer_id, open_identity, seal_identity

CHEAP = Cost(n=2)
ALICE = Identity.from_seed(bytes(range(32)))
PHRASE = "correct horse battery"
TEXT = seal_identity(ALICE, PHRASE, salt=b"s" * 16, nonce=b"n" * 12, cost=CHEAP)


def changed(**fields) -> str:
    return json.dumps(json.loads(TEXT) | fields)


def test_what_was_sealed_is_opened_with_the_same_passphrase():
    opened = open_identity(TEXT, PHRASE)
    assert (opened.peer_id, opened.seed(), opened.path) == (ALICE.peer_id, ALICE.seed(), None)
    assert exported_peer_id(TEXT) == ALICE.peer_id


def test_the_text_says_how_it_was_made_and_holds_no_secret():
    fields = json.loads(TEXT)
    assert (fields["format"], fields["version"], fields["peer_id"]) == ("efedllm identity", 1, ALICE.peer_id)
    assert (fields["key_derivation"], fields["n"], fields["r"], fields["p"]) == ("scrypt", 2, 8, 1)
    assert fields["cipher"] == "chacha20-poly1305"
    assert ALICE.seed().hex() not in TEXT
    assert PHRASE not in TEXT


def test_other_programs_can_open_it_by_what_it_says_of_itself():
    fields = json.loads(TEXT)
    key = hashlib.scrypt(PHRASE.encode(), salt=b"s" * 16, n=2, r=8, p=1, dklen=32)
    header = ["efedllm identity", 1, ALICE.peer_id_bytes, "scrypt", 2, 8, 1, b"s" * 16, "chacha20-poly1305", b"n" * 12]
    sealed = bytes.fromhex(fields["sealed_seed"])
    assert ChaCha20Poly1305(key).decrypt(b"n" * 12, sealed, msgpack.packb(header)) == ALICE.seed()
    assert fields["checksum"] == hashlib.sha256(msgpack.packb(header) + sealed).hexdigest()


@pytest.mark.parametrize("phrase", ["", "Correct horse battery", PHRASE + " ", PHRASE[:-1]])
def test_another_passphrase_opens_nothing(phrase: str):
    with pytest.raises(WrongPassphrase, match="does not open"):
        open_identity(TEXT, phrase)


def test_a_passphrase_counts_alike_in_both_forms_of_unicode():
    composed, decomposed = "p\u00e4ssphrase", "pa\u0308ssphrase"
    text = seal_identity(ALICE, composed, salt=b"s" * 16, nonce=b"n" * 12, cost=CHEAP)
    assert open_identity(text, decomposed).peer_id == ALICE.peer_id


@given(st.integers(0, len(TEXT) - 1), st.sampled_from("0af9 {"))
def test_a_text_in_which_a_letter_changed_is_damaged_and_never_opens(at: int, letter: str):
    damaged = TEXT[:at] + letter + TEXT[at + 1 :]
    if json_of(damaged) == json.loads(TEXT):
        return
    with pytest.raises(IdentityDamaged):
        open_identity(damaged, PHRASE)


def json_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


@pytest.mark.parametrize(
    "text",
    ["", "junk", "[]", "{}", "null", "[" * 3000, TEXT[:-5], TEXT + "x", changed(more=1), changed(peer_id=7)],
)
def test_what_is_no_exported_identity_is_told_apart_from_a_wrong_passphrase(text: str):
    with pytest.raises(IdentityDamaged):
        open_identity(text, PHRASE)


def test_a_later_version_asks_for_an_update():
    with pytest.raises(IdentityDamaged, match="update"):
        open_identity(changed(version=2), PHRASE)


@pytest.mark.parametrize(
    "cost", [Cost(n=2**24), Cost(n=3), Cost(n=0), Cost(n=2, r=0), Cost(n=2, r=65), Cost(n=2, p=17), Cost(n=2**20, r=16)]
)
def test_a_text_that_asks_for_more_than_a_machine_bears_is_refused_before_anything_is_computed(monkeypatch, cost: Cost):
    monkeypatch.setattr(identity_export, "Scrypt", None)
    sealed = replace(identity_export._Sealed.from_text(TEXT), cost=cost)
    with pytest.raises(IdentityDamaged):
        open_identity(sealed.to_text(), PHRASE)


def test_a_swapped_header_does_not_open_even_with_a_right_checksum():
    other = Identity.from_seed(bytes(32))
    swapped = replace(identity_export._Sealed.from_text(TEXT), peer_id=other.peer_id)
    with pytest.raises(WrongPassphrase):
        open_identity(swapped.to_text(), PHRASE)


def test_short_passphrases_and_other_lengths_are_refused():
    for changes in ({"passphrase": "1234567"}, {"salt": b"short"}, {"nonce": b"short"}):
        arguments = {"passphrase": PHRASE, "salt": b"s" * 16, "nonce": b"n" * 12} | changes
        with pytest.raises(ValueError):
            seal_identity(ALICE, cost=CHEAP, **arguments)


def test_a_trial_takes_128_mib_unless_asked_otherwise():
    text = seal_identity(ALICE, PHRASE, salt=b"s" * 16, nonce=b"n" * 12)
    fields = json.loads(text)
    assert 128 * fields["n"] * fields["r"] == 2**27
    assert open_identity(text, PHRASE).peer_id == ALICE.peer_id
