"""Every kind of record with everything that follows from its fields, and what is refused, with the reason.

Whoever writes another implementation checks it against these: from seeds and fields to bytes, key, subkey and expiry.
Deterministic: Ed25519 signatures are, and no clock or randomness is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.codec import Value, encode
from dht.equivocation import prove
from dht.ident import Ident, Role, Succession, find_proof, proof_bits
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
    key_bytes,
    seal,
)
from dht.rules import DEFAULT_RULES, Rules
from dht.snapshot import Snapshot, digest_of
from dht.work import Receipt, WorkKind, work_of

NOW_S = 1_800_000_000
SHORT = Rules(epoch_s=5, window_epochs=8, evidence_epochs=16, proof_of_work_bits=8)


def _seed(number: int) -> bytes:
    return hashlib.sha256(b"golden author %d" % number).digest()


SEEDS = tuple(_seed(number) for number in range(4))
ALICE, BOB, CAROL, DAVE = (Identity(Ed25519PrivateKey.from_private_bytes(seed), None) for seed in SEEDS)
_AUTHOR = {author.peer_id: author for author in (ALICE, BOB, CAROL, DAVE)}
_SEED_OF = {author.peer_id: seed for author, seed in zip((ALICE, BOB, CAROL, DAVE), SEEDS, strict=True)}
MANIFEST = hashlib.sha256(b"golden model").digest()
EPOCH = DEFAULT_RULES.epoch_of(NOW_S)
BEGAN = DEFAULT_RULES.start_of(EPOCH)


@dataclass(frozen=True)
class Refused:
    """What a node is asked to store, and why it does not."""

    name: str
    reason: str
    dht_id: bytes
    packed_subkey: bytes
    envelope: bytes
    expires_s: float
    rules: Rules | None = DEFAULT_RULES  # None: the node does not know them yet
    now_s: int = NOW_S

    @classmethod
    def of(cls, name: str, reason: str, signed: SignedRecord, **changes: Any) -> Refused:
        """Take a sealed record as it should be stored, and change what is wrong with it."""
        stored = cls(
            name, reason, dht_id(signed.key), msgpack.packb(signed.subkey), signed.envelope, signed.expires_s + 0.0
        )
        return replace(stored, **changes)


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


def _short(receipt: Receipt) -> Receipt:
    """Move a receipt into a swarm whose epochs take seconds."""
    return replace(receipt, epoch=SHORT.epoch_of(NOW_S), t_first=NOW_S - 2, t_last=NOW_S)


def _proof() -> Record:
    other = replace(RECEIPT, amount=193, work=772)
    return prove(BOB.peer_id, *(Envelope.from_bytes(seal(each, ALICE, BOB).envelope) for each in (RECEIPT, other)))


def _good() -> Iterator[tuple[str, Record, Rules]]:
    relayed = {"work_kind": WorkKind.RELAY, "amount": 4096, "work": 4096}
    yield "an announcement", ANNOUNCEMENT, DEFAULT_RULES
    yield "a withdrawal", replace(ANNOUNCEMENT, state=ServerState.OFFLINE, t=NOW_S + 1), DEFAULT_RULES
    yield "a model", MODEL, DEFAULT_RULES
    yield "a swarm's parameters", PARAMETERS, DEFAULT_RULES
    yield "a receipt of decoding", RECEIPT, DEFAULT_RULES
    yield "a receipt of relayed weights", replace(RECEIPT, **relayed), DEFAULT_RULES  # type: ignore[arg-type]
    yield "a receipt where epochs take five seconds", _short(RECEIPT), SHORT
    yield "a proof of two receipts for the same", _proof(), DEFAULT_RULES
    yield "an identity with proof of work", IDENT, replace(DEFAULT_RULES, proof_of_work_bits=8)
    yield "an identity that is followed by another", SUCCESSION, DEFAULT_RULES
    yield "a snapshot", SNAPSHOT, DEFAULT_RULES


# ----------------------------------------------------------------------------------------------------- refused ones


def _refused() -> Iterator[Refused]:
    announced, receipt = _sealed(ANNOUNCEMENT), _sealed(RECEIPT)
    yield from _out_of_place(announced)
    yield from _not_canonical(announced)
    yield from _dishonest(receipt)
    yield from _out_of_time(receipt)
    yield from _unsigned(receipt)


def _out_of_place(signed: SignedRecord) -> Iterator[Refused]:
    def of(name: str, reason: str, **changes: Any) -> Refused:
        return Refused.of(name, reason, signed, **changes)

    yield of("a subkey longer than any", "subkey", packed_subkey=msgpack.packb(bytes(127)))
    yield of("no subkey: it would replace the whole key", "no subkey", packed_subkey=msgpack.packb(None))
    yield of("a subkey of text", "no subkey", packed_subkey=msgpack.packb("owner"))
    yield of("more bytes than any record has", "oversize", envelope=bytes(4097))
    yield of("another expiry", "expiry", expires_s=signed.expires_s + 1.0)
    yield of("another key", "key", dht_id=dht_id(key_bytes(16, (MANIFEST, 1))))
    yield of("another's subkey", "owner", packed_subkey=msgpack.packb(BOB.peer_id_bytes))
    yield of("it has expired", "expired", now_s=NOW_S + 60)
    yield of("it was signed 121 s ahead of the clock", "from the future", now_s=NOW_S - 121)


def _not_canonical(signed: SignedRecord) -> Iterator[Refused]:
    opened = Envelope.from_bytes(signed.envelope)

    def of(name: str, envelope: bytes, reason: str = "malformed") -> Refused:
        return Refused.of(name, reason, signed, envelope=envelope)

    def body(data: bytes) -> bytes:
        return Envelope(16, data, (ALICE.sign(16, data),)).to_bytes()

    values: list[Value] = msgpack.unpackb(opened.body)
    yield of("an unknown kind", Envelope(40, opened.body, (ALICE.sign(40, opened.body),)).to_bytes(), "unknown kind")
    yield of("a byte after the envelope", signed.envelope + b"\0")
    yield of("the version in two bytes", b"\x94\xcc\x01" + signed.envelope[2:])
    yield of("a map in place of the envelope's array", msgpack.packb({1: 16}))
    yield of("a later version of the envelope", encode([2, 16, opened.body, list(opened.signatures)]))
    yield of("a byte after the body", body(opened.body + b"\0"))
    yield of("a field too many", body(encode([*values, 0])))
    yield of("a field too few", body(encode(values[:-1])))
    yield of("a number with a fraction", body(msgpack.packb([*values[:3], NOW_S + 0.5, *values[4:]])))
    yield of("nothing in place of a field", body(msgpack.packb([*values[:3], None, *values[4:]])))
    longer = replace(RECEIPT, epoch=2**32 - 1)
    three = (ALICE.sign(2, longer.to_body()),) * 3
    oversize = Envelope(2, longer.to_body(), three).to_bytes()
    yield Refused.of("more bytes than a receipt has", "oversize", _sealed(RECEIPT), envelope=oversize)


def _dishonest(signed: SignedRecord) -> Iterator[Refused]:
    """Yield receipts that both have signed, although they contradict themselves."""
    for name, changes in (
        ("work that is not amount times blocks", {"work": 769}),
        ("more than anyone does in that time", {"amount": 10**8, "work": 4 * 10**8}),
        ("an empty span", {"start": 8, "work": 0}),
        ("it ends before it begins", {"t_last": BEGAN + 59}),
        ("nobody works for himself", {"consumer": ALICE.peer_id}),
        ("receipts are counted from one", {"seq": 0}),
        ("no session counted", {"sessions": 0}),
        ("a commitment of another length", {"commitment": bytes(31)}),
    ):
        bad: Receipt = replace(RECEIPT, **changes)  # type: ignore[arg-type]
        yield Refused.of(name, "malformed", signed, envelope=_forced(bad))
    kinds = msgpack.unpackb(RECEIPT.to_body())
    kinds[4] = 7
    body = encode(kinds)
    unknown = Envelope(2, body, (ALICE.sign(2, body), BOB.sign(2, body))).to_bytes()
    yield Refused.of("an unknown kind of work", "malformed", signed, envelope=unknown)


def _out_of_time(signed: SignedRecord) -> Iterator[Refused]:
    tomorrow = replace(RECEIPT, epoch=EPOCH + 2, t_first=BEGAN + 43200, t_last=BEGAN + 43200)
    early = replace(RECEIPT, t_first=BEGAN - 121)
    lazy = replace(IDENT, nonce=next(n for n in range(99) if proof_bits(ALICE.peer_id, EPOCH - 9, n) < 8))
    running = replace(SNAPSHOT, epoch=EPOCH)
    yield Refused.of("a receipt while the rules are not known", "rules not known", signed, rules=None)
    yield Refused.of("a receipt of the epoch after next", "from the future", _sealed(tomorrow))
    yield Refused.of("work 121 s before its epoch", "outside its epoch", _sealed(early))
    yield Refused.of("a receipt after its window", "expired", signed, now_s=int(signed.expires_s) + 1)
    yield Refused.of("one that lives longer", "expiry", signed, expires_s=signed.expires_s + 1 / 1024)
    yield Refused.of("an hour longer", "expiry", signed, expires_s=signed.expires_s + 3600.0)
    yield Refused.of("the rules of another swarm", "from the future", _sealed(_short(RECEIPT), SHORT))
    hard = replace(DEFAULT_RULES, proof_of_work_bits=8)
    yield Refused.of("an identity without its proof of work", "proof of work", _sealed(lazy, hard), rules=hard)
    yield Refused.of("a snapshot of an epoch that has not ended", "from the future", _sealed(running))


def _unsigned(signed: SignedRecord) -> Iterator[Refused]:
    body = RECEIPT.to_body()
    provider, consumer = ALICE.sign(2, body), BOB.sign(2, body)
    for name, signatures in (
        ("no signature", ()),
        ("the provider's signature alone", (provider,)),
        ("the provider's signature twice", (provider, provider)),
        ("signatures in the other order", (consumer, provider)),
        ("the signature of somebody else", (provider, CAROL.sign(2, body))),
        ("a signature for another kind", (provider, BOB.sign(3, body))),
        ("a signature of zeros", (provider, bytes(64))),
    ):
        yield Refused.of(name, "signature", signed, envelope=Envelope(2, body, signatures).to_bytes())
    elsewhere = _sealed(replace(RECEIPT, provider=CAROL.peer_id))
    yield Refused.of("under another provider's key", "key", signed, dht_id=dht_id(elsewhere.key))
    yield Refused.of("in another lane", "owner", signed, packed_subkey=msgpack.packb(signed.subkey[:-1] + b"\2"))
    made_up = replace(_proof(), first_signature=bytes(64))  # type: ignore[call-arg]
    yield Refused.of("a made up proof", "signature", seal(made_up))


def _sealed(record: Record, rules: Rules = DEFAULT_RULES) -> SignedRecord:
    return seal(record, *(_AUTHOR[author] for author in record.authors), rules=rules)


def _forced(receipt: Receipt) -> bytes:
    """Sign what ``seal`` would not."""
    body = receipt.to_body()
    return Envelope(2, body, tuple(_AUTHOR[author].sign(2, body) for author in receipt.authors)).to_bytes()


# ----------------------------------------------------------------------------------------------------------- as JSON


def all_records() -> dict[str, Any]:
    """Return the file's content: byte strings in hex, peer ids in base58, times in unix seconds."""
    assert RECEIPT.work == work_of(RECEIPT.work_kind, RECEIPT.amount, RECEIPT.start, RECEIPT.end)
    return {
        "about": "Records of every kind: what follows from seeds and fields; and what every node refuses, and why.",
        "records": [_as_json(name, record, rules) for name, record, rules in _good()],
        "refused": [_refusal_as_json(refused) for refused in _refused()],
    }


def _as_json(name: str, record: Record, rules: Rules) -> dict[str, Any]:
    signed = _sealed(record, rules)
    return {
        "name": name,
        "type": type(record).__name__,
        "kind": int(record.KIND),
        "rules": asdict(rules),
        "author_seeds": [_SEED_OF[author].hex() for author in record.authors],
        "fields": {field.name: _plain(getattr(record, field.name)) for field in fields(record)},  # type: ignore[arg-type]
        "body": record.to_body().hex(),
        "envelope": signed.envelope.hex(),
        "key": signed.key.hex(),
        "dht_id": dht_id(signed.key).hex(),
        "subkey": signed.subkey.hex(),
        "expires_s": signed.expires_s,
        "now_s": NOW_S,
    }


def _refusal_as_json(refused: Refused) -> dict[str, Any]:
    return {
        "name": refused.name,
        "reason": refused.reason,
        "rules": None if refused.rules is None else asdict(refused.rules),
        "dht_id": refused.dht_id.hex(),
        "packed_subkey": refused.packed_subkey.hex(),
        "envelope": refused.envelope.hex(),
        "expires_s": refused.expires_s,
        "now_s": refused.now_s,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value
