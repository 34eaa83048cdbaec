"""Golden vectors: the same bytes, places, lives and verdicts at every node, version and machine."""

import enum
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.calibration import Threshold
from dht.identity import Identity, peer_id_to_bytes, peer_id_to_str, verify
from dht.records import Envelope, dht_id, key_bytes, seal
from dht.rules import Rules
from dht.validation import REGISTRY, RecordValidator, parse_envelope

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
RECORDS = json.loads((VECTORS / "records.json").read_text())
EDGES = json.loads((VECTORS / "ed25519_edges.json").read_text())
by_name = {"ids": lambda vector: vector["name"]}


def as_field(of_type, value):
    """Turn what JSON holds into what a record holds."""
    if of_type is bytes:
        return bytes.fromhex(value)
    if isinstance(of_type, type) and issubclass(of_type, enum.Enum):
        return of_type(value)
    if of_type == tuple[Threshold, ...]:
        return tuple(map(Threshold._make, value))
    if isinstance(value, list):
        return tuple(as_field(None, item) for item in value)
    return value


def record_of(vector):
    kind = REGISTRY[vector["kind"]]
    return kind(**{field.name: as_field(field.type, vector["fields"][field.name]) for field in fields(kind)})


def authors_of(vector):
    seeds = map(bytes.fromhex, vector["author_seeds"])
    return [Identity(Ed25519PrivateKey.from_private_bytes(seed), None) for seed in seeds]


def validator_of(vector):
    validator = RecordValidator(clock=lambda: vector["now_s"])
    if vector["rules"] is None:
        validator.knows_rules = False
    else:
        validator.rules = Rules(**vector["rules"])
    return validator


@pytest.mark.parametrize("vector", RECORDS["records"], **by_name)
def test_seeds_and_fields_give_these_bytes_places_and_lives(vector):
    record, rules = record_of(vector), Rules(**vector["rules"])
    assert type(record).__name__ == vector["type"]
    signed = seal(record, *authors_of(vector), rules=rules)
    assert record.to_body().hex() == vector["body"]
    assert signed.envelope.hex() == vector["envelope"]
    assert signed.key.hex() == vector["key"]
    assert key_bytes(record.KIND, record.key_parts(signed.envelope)).hex() == vector["key"]
    assert dht_id(signed.key).hex() == vector["dht_id"]
    assert signed.subkey.hex() == vector["subkey"]
    assert signed.expires_s == vector["expires_s"]


@pytest.mark.parametrize("vector", RECORDS["records"], **by_name)
def test_these_bytes_are_read_as_these_fields_and_accepted_where_they_belong(vector):
    envelope = bytes.fromhex(vector["envelope"])
    opened, placed = parse_envelope(envelope, Rules(**vector["rules"]))
    assert opened.body.hex() == vector["body"]
    assert placed.record == record_of(vector)
    subkey = bytes.fromhex(vector["subkey"])
    packed = bytes([0xC4, len(subkey)]) + subkey
    place = bytes.fromhex(vector["dht_id"]), packed
    assert validator_of(vector).why_not(*place, envelope, vector["expires_s"]) is None


@pytest.mark.parametrize("vector", RECORDS["refused"], **by_name)
def test_these_are_refused_for_this_reason(vector):
    place = bytes.fromhex(vector["dht_id"]), bytes.fromhex(vector["packed_subkey"])
    refused = validator_of(vector).why_not(*place, bytes.fromhex(vector["envelope"]), vector["expires_s"])
    assert refused == vector["reason"]


def test_every_kind_of_record_has_a_vector():
    assert {vector["kind"] for vector in RECORDS["records"]} == set(REGISTRY)


@pytest.mark.parametrize("vector", EDGES["edges"], **by_name)
def test_a_signature_at_the_edge_has_this_verdict(vector):
    body, signature = bytes.fromhex(vector["body"]), bytes.fromhex(vector["signature"])
    peer = peer_id_to_bytes(vector["peer"])
    assert peer_id_to_str(peer) == vector["peer"]
    assert peer[6:].hex() == vector["public_key"]
    assert verify(peer, EDGES["kind"], body, signature) is vector["valid"]
    opened = Envelope.from_bytes(bytes.fromhex(vector["envelope"]))
    assert opened == Envelope(EDGES["kind"], body, (signature,))


def test_the_vectors_are_those_that_the_script_writes(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "make_vectors.py"), "--out", str(tmp_path)]
    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    for name in ("records.json", "ed25519_edges.json", "committees.json", "scores.json"):
        assert (tmp_path / name).read_text() == (VECTORS / name).read_text()
