"""Every kind of record with everything that follows from its fields.

Whoever writes another implementation checks it against these: from seeds and fields to bytes, key, subkey and expiry.
Deterministic: Ed25519 signatures are, and no clock or randomness is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.audit import Audit, Finding
from dht.calibration import Calibration, Threshold
from dht.claim import Claim
from dht.contest import Contest
from dht.equivocation import Equivocation, prove
from dht.ident import Ident, Role, Succession, find_proof
from dht.identity import Identity
from dht.parameters import SwarmParameters
from dht.records import (
    EMBEDS,
    Announcement,
    Envelope,
    ManifestRecord,
    Record,
    ServerState,
    SignedRecord,
    dht_id,
    seal,
)
from dht.rules import DEFAULT_RULES, Rules
from dht.ruling import Backer, Outcome, RulingRecord
from dht.snapshot import Snapshot, digest_of
from dht.verdict import Opinion, commit, reveal
from dht.work import Receipt, WorkKind, work_of

NOW_S = 1_800_000_000
SHORT = Rules(epoch_s=5, window_epochs=8, evidence_epochs=16, proof_of_work_bits=8)


def _seed(number: int) -> bytes:
    return hashlib.sha256(b"golden author %d" % number).digest()


SEEDS = tuple(_seed(number) for number in range(4))
ALICE, BOB, CAROL, DAVE = (Identity(Ed25519PrivateKey.from_private_bytes(seed), None) for seed in SEEDS)
AUTHOR = {author.peer_id: author for author in (ALICE, BOB, CAROL, DAVE)}
_SEED_OF = {author.peer_id: seed for author, seed in zip((ALICE, BOB, CAROL, DAVE), SEEDS, strict=True)}
MANIFEST = hashlib.sha256(b"golden model").digest()
EPOCH = DEFAULT_RULES.epoch_of(NOW_S)
BEGAN = DEFAULT_RULES.start_of(EPOCH)


# ------------------------------------------------------------------------------------------------------- good ones

ANNOUNCEMENT = Announcement(
    manifest=MANIFEST,
    shard=0,
    owner=ALICE.peer_id,
    t=NOW_S,
    life_s=60,
    state=ServerState.ONLINE,
    start=0,
    end=4,
    dtype="float32",
    throughput_milli=1_234_567,
    max_length=2048,
    cache_free_tokens=65536,
    addresses=(f"/ip4/192.0.2.1/tcp/31337/p2p/{ALICE.peer_id}",),
    version="0.1.0",
    ends=EMBEDS,
    prefill_milli=9_876_543,
    queue_us=250,
    neighbours=((BOB.peer_id, 1500), (CAROL.peer_id, 90_000)),
)
MODEL = ManifestRecord(MANIFEST, ALICE.peer_id, NOW_S, 60, "a model", "llama", 12, 768, 50257)
PARAMETERS = SwarmParameters(
    ALICE.peer_id,
    NOW_S,
    315_360_000,
    "golden",
    private=True,
    proof_of_work_bits=8,
    anchors=(ALICE.peer_id, DAVE.peer_id),
)
RECEIPT = Receipt(
    provider=ALICE.peer_id,
    consumer=BOB.peer_id,
    epoch=EPOCH,
    lane=0xDEADBEEF,
    work_kind=WorkKind.DECODE,
    seq=3,
    manifest=MANIFEST,
    start=4,
    end=8,
    profile=hashlib.sha256(b"golden profile").digest(),
    sessions=2,
    amount=192,
    work=768,
    bytes_in=1_572_864,
    bytes_out=1_572_864,
    commitment=hashlib.sha256(b"golden chunks").digest(),
    t_first=BEGAN + 60,
    t_last=BEGAN + 90,
)
IDENT = Ident(ALICE.peer_id, EPOCH - 9, EPOCH, find_proof(ALICE.peer_id, EPOCH - 9, 8), Role.SERVER, "lab")
SNAPSHOT = Snapshot(ALICE.peer_id, EPOCH - 56, EPOCH - 1, 2, digest_of([b"one", b"two"]), bytes(32))
SUCCESSION = Succession(ALICE.peer_id, BOB.peer_id, EPOCH)
AUDIT = Audit(
    auditor=CAROL.peer_id,
    epoch=EPOCH,
    provider=ALICE.peer_id,
    consumer=BOB.peer_id,
    receipt_epoch=EPOCH,
    lane=RECEIPT.lane,
    work_kind=RECEIPT.work_kind,
    receipt=hashlib.sha256(RECEIPT.to_body()).digest(),
    manifest=MANIFEST,
    start=4,
    end=8,
    profile=RECEIPT.profile,
    session=hashlib.sha256(b"golden session").digest()[:16],
    segment=0,
    index=2,
    num_chunks=3,
    finding=Finding.PASS,
    median_ppm=8_100,
    upper_ppm=10_900,
    max_ppm=14_200,
    calibration=hashlib.sha256(b"golden calibration").digest(),
    t=BEGAN + 3600,
)
_TRIAL = EPOCH - 2
"""Epoch of a claim whose trial is over: all that was signed in it lies in the past."""
_FALSE = replace(
    RECEIPT,
    epoch=_TRIAL,
    t_first=DEFAULT_RULES.start_of(_TRIAL) + 60,
    t_last=DEFAULT_RULES.start_of(_TRIAL) + 90,
).to_body()
CLAIM = Claim(
    accuser=BOB.peer_id,
    epoch=_TRIAL,
    number=1,
    receipt=_FALSE,
    receipt_signature=ALICE.sign(RECEIPT.KIND, _FALSE),
    session=AUDIT.session,
    segment=0,
    index=2,
    error_ppm=560_000,
    evidence=hashlib.sha256(b"golden evidence").digest(),
    evidence_bytes=1_600_000,
    t=DEFAULT_RULES.start_of(_TRIAL) + 3600,
)
DENIAL = Contest(ALICE.peer_id, _TRIAL, CLAIM.hash, BOB.peer_id, level=1, t=CLAIM.t + 1800)
SALT = hashlib.sha256(b"golden salt").digest()
COMMITMENT = commit(DAVE.peer_id, _TRIAL, CLAIM.hash, 1, Opinion.UPHELD, SALT, CLAIM.t + 5400)
OPENED = reveal(DAVE.peer_id, _TRIAL, CLAIM.hash, 1, Opinion.UPHELD, SALT, 561_234, CLAIM.t + 10800)
RULING = RulingRecord(
    anchor=CAROL.peer_id,
    epoch=_TRIAL,
    claim=CLAIM.hash,
    accuser=BOB.peer_id,
    number=CLAIM.number,
    provider=ALICE.peer_id,
    consumer=BOB.peer_id,
    receipt_epoch=_TRIAL,
    lane=RECEIPT.lane,
    work_kind=RECEIPT.work_kind,
    session=CLAIM.session,
    segment=CLAIM.segment,
    index=CLAIM.index,
    outcome=Outcome.UPHELD,
    backer=Backer.NOBODY,
    settled_s=CLAIM.t + 18_000,
)
CALIBRATION = Calibration(
    manifest=MANIFEST,
    signer=DAVE.peer_id,
    epoch=EPOCH,
    seq=1,
    file=AUDIT.calibration,
    file_bytes=70_000,
    thresholds=(
        Threshold("bfloat16", "bfloat16", 1, 13_000, 21_000, 34_000, 90_000, 8_900, 1600),
        Threshold("bfloat16", "bfloat16", 4, 17_000, 27_000, 44_000, 120_000, 11_300, 1600),
        Threshold("float32", "float32", 4, 100, 1_000, 1_000, 10_000, 2, 0),
    ),
    t=BEGAN + 60,
)


def short(receipt: Receipt) -> Receipt:
    """Move a receipt into a swarm whose epochs take seconds."""
    return replace(receipt, epoch=SHORT.epoch_of(NOW_S), t_first=NOW_S - 2, t_last=NOW_S)


def proof() -> Equivocation:
    """Prove that Bob signed two receipts for the same."""
    other = replace(RECEIPT, amount=193, work=772)
    return prove(BOB.peer_id, *(Envelope.from_bytes(seal(each, ALICE, BOB).envelope) for each in (RECEIPT, other)))


def _good() -> Iterator[tuple[str, Record, Rules]]:
    relayed = {"work_kind": WorkKind.RELAY, "amount": 4096, "work": 4096}
    yield "an announcement", ANNOUNCEMENT, DEFAULT_RULES
    yield "a withdrawal", replace(ANNOUNCEMENT, state=ServerState.OFFLINE, t=NOW_S + 1), DEFAULT_RULES
    yield "a model", MODEL, DEFAULT_RULES
    yield "a swarm's parameters", PARAMETERS, DEFAULT_RULES
    yield "a receipt of decoding", RECEIPT, DEFAULT_RULES
    yield "a receipt of relayed weights", replace(RECEIPT, **relayed), DEFAULT_RULES
    yield "a receipt where epochs take five seconds", short(RECEIPT), SHORT
    yield "a proof of two receipts for the same", proof(), DEFAULT_RULES
    yield "an identity with proof of work", IDENT, replace(DEFAULT_RULES, proof_of_work_bits=8)
    yield "an identity that is followed by another", SUCCESSION, DEFAULT_RULES
    yield "a snapshot", SNAPSHOT, DEFAULT_RULES
    yield "an audit that three chunks have passed", AUDIT, DEFAULT_RULES
    yield "an audit that one has failed", replace(AUDIT, finding=Finding.FAIL, num_chunks=4), DEFAULT_RULES
    yield "a claim", CLAIM, DEFAULT_RULES
    yield "a denial of it", DENIAL, DEFAULT_RULES
    yield "an appeal", replace(DENIAL, level=2, t=CLAIM.t + 14_400), DEFAULT_RULES
    yield "a commitment to a verdict", COMMITMENT, DEFAULT_RULES
    yield "the verdict opened", OPENED, DEFAULT_RULES
    yield "an anchor's ruling", RULING, DEFAULT_RULES
    yield (
        "a ruling on a claim that came too late",
        replace(RULING, outcome=Outcome.IGNORED, settled_s=CLAIM.t),
        DEFAULT_RULES,
    )
    yield "a calibration", CALIBRATION, DEFAULT_RULES


def sealed(record: Record, rules: Rules = DEFAULT_RULES) -> SignedRecord:
    """Sign a record with the seeds of its authors."""
    return seal(record, *(AUTHOR[author] for author in record.authors), rules=rules)


# ----------------------------------------------------------------------------------------------------------- as JSON


def all_records() -> list[dict[str, Any]]:
    """Return the good records as they stand in the file: bytes in hex, peer ids in base58, times in unix seconds."""
    assert RECEIPT.work == work_of(RECEIPT.work_kind, RECEIPT.amount, RECEIPT.start, RECEIPT.end)
    return [_as_json(name, record, rules) for name, record, rules in _good()]


def _as_json(name: str, record: Record, rules: Rules) -> dict[str, Any]:
    signed = sealed(record, rules)
    return {
        "name": name,
        "type": type(record).__name__,
        "kind": int(record.KIND),
        "rules": asdict(rules),
        "author_seeds": [_SEED_OF[author].hex() for author in record.authors],
        "fields": {field.name: _plain(getattr(record, field.name)) for field in fields(record)},
        "body": record.to_body().hex(),
        "envelope": signed.envelope.hex(),
        "key": signed.key.hex(),
        "dht_id": dht_id(signed.key).hex(),
        "subkey": signed.subkey.hex(),
        "expires_s": signed.expires_s,
        "now_s": NOW_S,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value
