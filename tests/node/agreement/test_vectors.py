"""What ``tests/vectors/commitments.json`` says, a second implementation must find, too."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.domains import Domain
from dht.identity import Identity, peer_id_to_bytes, verify
from node.agreement.checkpoint import Checkpoint, Cosign
from node.agreement.offers import Offer, accept, padding_digest, profile_digest
from node.commitment.chunks import Chunk, Leaf, Tap
from node.merkle import hash_leaf, prove, root_of
from node.wire import Step

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "commitments.json").read_text())
HASHES = ("header", "digest", "taken", "given", "voucher")


def identity(name):
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["seeds"][name])), None)


def unhexed(fields):
    return {name: bytes.fromhex(value) if name in HASHES else value for name, value in fields.items()}


def test_the_peer_ids_are_those_of_the_seeds():
    assert {name: identity(name).peer_id for name in VECTORS["seeds"]} == VECTORS["peer_ids"]


def test_the_profile():
    made = VECTORS["profile"]
    assert profile_digest(made["weights"], made["codec"], made["adapter"]).hex() == made["digest"]


def test_the_padding():
    made = VECTORS["padding"]
    assert padding_digest(made["counts"]).hex() == made["digest"]
    assert padding_digest(()).hex() == padding_digest((0, 0)).hex() == made["none"]


def test_the_offer_and_its_acceptance():
    made, fields = VECTORS["offer"], VECTORS["offer"]["fields"]
    raw = {name: bytes.fromhex(fields[name]) for name in ("session", "manifest", "profile", "padding")}
    offer = Offer(**(fields | raw))
    assert offer.to_body().hex() == made["body"]
    assert identity("consumer").sign(Domain.OFFER, offer.to_body()).hex() == made["signature"]
    acceptance = accept(offer.to_body(), identity("provider").sign)
    assert acceptance.hex() == VECTORS["accept"]["signature"]
    assert sha256(offer.to_body()).hexdigest() == VECTORS["accept"]["body"]


@pytest.mark.parametrize("vector", VECTORS["chunks"], ids=lambda vector: vector["about"])
def test_chunks(vector):
    tap, found = Tap(vector["codec"], vector["segment"]), []
    for each in vector["steps"]:
        step = Step(
            bytes(16), each["position"], tuple(each["shape"]), each["codec"], bytes.fromhex(each["payload"]),
            crop=each["crop"], rows=tuple(each["rows"]) if each["rows"] is not None else None,
            logits_to_keep=each["logits_to_keep"], replay=each["replay"],
        )  # fmt: skip
        found += tap.add(step, each["segment"], step.codec, step.shape, step.payload)
    found += tap.seal()
    assert found == [Chunk(**unhexed(chunk)) for chunk in vector["chunks"]]


def test_the_voucher():
    made, session = VECTORS["voucher"], bytes.fromhex(VECTORS["offer"]["fields"]["session"])
    body = Chunk(**unhexed(made["chunk"])).voucher_body(session)
    assert body.hex() == made["body"]
    assert identity("provider").sign(Domain.CHUNK, body).hex() == made["signature"]
    signer = peer_id_to_bytes(VECTORS["peer_ids"]["provider"])
    assert verify(signer, 130, body, bytes.fromhex(made["signature"]))
    assert not verify(signer, 129, body, bytes.fromhex(made["signature"]))


def test_leaves_roots_and_proofs():
    session = bytes.fromhex(VECTORS["offer"]["fields"]["session"])
    hashes = []
    for vector in VECTORS["leaves"]:
        content = bytes.fromhex(vector["content"])
        hashes.append(Leaf(**unhexed(vector["leaf"])).hash(session))
        assert hashes[-1].hex() == vector["hash"]
        assert hash_leaf(content) == hashes[-1]
    assert [root_of(hashes[:size]).hex() for size in range(len(hashes) + 1)] == VECTORS["roots"]
    for proof in VECTORS["proofs"]:
        path = prove(hashes[: proof["size"]], proof["index"])
        assert [each.hex() for each in path] == proof["path"]


def test_the_checkpoint_and_its_answer():
    made = VECTORS["checkpoint"]
    leaves = tuple(Leaf(**unhexed(vector["leaf"])) for vector in VECTORS["leaves"][: made["leaves"]])
    receipt = bytes.fromhex(made["receipt"])
    signature = identity("provider").sign(2, receipt)
    checkpoint = Checkpoint(made["number"], made["steps"], leaves, (receipt,), (signature,))
    assert checkpoint.to_body().hex() == made["body"]
    answer = Cosign(made["number"], (identity("consumer").sign(2, receipt),))
    assert answer.to_body().hex() == made["answer"]
