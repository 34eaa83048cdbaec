"""What every node refuses to store or believe, and the word with which it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgpack

from dht.codec import Value, encode
from dht.ident import proof_bits
from dht.records import Envelope, Record, SignedRecord, dht_id, key_bytes, seal
from dht.rules import DEFAULT_RULES, Rules
from dht.work import Receipt, WorkKind
from golden.records import (
    ALICE,
    ANNOUNCEMENT,
    AUDIT,
    AUTHOR,
    BEGAN,
    BOB,
    CALIBRATION,
    CAROL,
    CLAIM,
    COMMITMENT,
    DENIAL,
    EPOCH,
    IDENT,
    MANIFEST,
    NOW_S,
    OPENED,
    RECEIPT,
    RULING,
    SHORT,
    SNAPSHOT,
    proof,
    sealed,
    short,
)


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


def all_refused() -> list[dict[str, Any]]:
    """Return them as they stand in the file."""
    return [_refusal_as_json(refused) for refused in _refused()]


def _refused() -> Iterator[Refused]:
    announced, receipt = sealed(ANNOUNCEMENT), sealed(RECEIPT)
    yield from _out_of_place(announced)
    yield from _not_canonical(announced)
    yield from _dishonest(receipt)
    yield from _out_of_time(receipt)
    yield from _unsigned(receipt)
    yield from _of_a_trial()


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
    yield Refused.of("more bytes than a receipt has", "oversize", sealed(RECEIPT), envelope=oversize)


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
        bad: Receipt = replace(RECEIPT, **changes)
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
    longer = replace(SNAPSHOT, first_epoch=SNAPSHOT.first_epoch - 1)
    yield Refused.of("a snapshot of more epochs than stand at once", "longer than a window", sealed(longer))
    running = replace(SNAPSHOT, epoch=EPOCH)
    yield Refused.of("a receipt while the rules are not known", "rules not known", signed, rules=None)
    yield Refused.of("a receipt of the epoch after next", "from the future", sealed(tomorrow))
    yield Refused.of("work 121 s before its epoch", "outside its epoch", sealed(early))
    yield Refused.of("a receipt after its window", "expired", signed, now_s=int(signed.expires_s) + 1)
    yield Refused.of("one that lives longer", "expiry", signed, expires_s=signed.expires_s + 1 / 1024)
    yield Refused.of("an hour longer", "expiry", signed, expires_s=signed.expires_s + 3600.0)
    yield Refused.of("the rules of another swarm", "from the future", sealed(short(RECEIPT), SHORT))
    hard = replace(DEFAULT_RULES, proof_of_work_bits=8)
    yield Refused.of("an identity without its proof of work", "proof of work", sealed(lazy, hard), rules=hard)
    yield Refused.of("a snapshot of an epoch that has not ended", "from the future", sealed(running))


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
    elsewhere = sealed(replace(RECEIPT, provider=CAROL.peer_id))
    yield Refused.of("under another provider's key", "key", signed, dht_id=dht_id(elsewhere.key))
    yield Refused.of("in another lane", "owner", signed, packed_subkey=msgpack.packb(signed.subkey[:-1] + b"\2"))
    made_up = replace(proof(), first_signature=bytes(64))
    yield Refused.of("a made up proof", "signature", seal(made_up))


def _of_a_trial() -> Iterator[Refused]:
    """Yield audits, claims, contests, verdicts, rulings and calibrations that nobody believes."""
    bad: tuple[tuple[str, Record, Record], ...] = (
        ("an audit of one's own work", AUDIT, replace(AUDIT, auditor=ALICE.peer_id)),
        ("an audit before the work", AUDIT, replace(AUDIT, receipt_epoch=EPOCH + 1)),
        ("an audit whose median is above its largest error", AUDIT, replace(AUDIT, median_ppm=20_000)),
        ("an audit of no chunk", AUDIT, replace(AUDIT, num_chunks=0)),
        ("a fourth claim in one epoch", CLAIM, replace(CLAIM, number=3)),
        ("a claim against oneself", CLAIM, replace(CLAIM, accuser=ALICE.peer_id)),
        ("a claim two epochs after the receipt", CLAIM, replace(CLAIM, epoch=CLAIM.epoch + 2)),
        ("a claim with no receipt in it", CLAIM, replace(CLAIM, receipt=b"\x90")),
        ("a claim with more evidence than anybody hands out", CLAIM, replace(CLAIM, evidence_bytes=2**26 + 1)),
        ("an accuser that denies its own claim", DENIAL, replace(DENIAL, contester=BOB.peer_id)),
        ("a fourth level", DENIAL, replace(DENIAL, level=4)),
        ("a commitment that tells", COMMITMENT, replace(COMMITMENT, opinion=OPENED.opinion)),
        ("a verdict that says nothing", OPENED, replace(OPENED, opinion=COMMITMENT.opinion)),
        ("a verdict opened without its salt", OPENED, replace(OPENED, salt=b"")),
        ("a ruling on a claim against oneself", RULING, replace(RULING, accuser=ALICE.peer_id)),
        ("a ruling on a fourth claim", RULING, replace(RULING, number=3)),
        ("a ruling on a receipt of another time", RULING, replace(RULING, receipt_epoch=EPOCH - 4)),
        ("a ruling on work without chunks", RULING, replace(RULING, work_kind=WorkKind.AUDIT)),
        ("thresholds twice", CALIBRATION, replace(CALIBRATION, thresholds=CALIBRATION.thresholds[:1] * 2)),
        ("no thresholds", CALIBRATION, replace(CALIBRATION, thresholds=())),
    )
    for name, good, record in bad:
        yield Refused.of(name, "malformed", sealed(good), envelope=_forced(record))
    unsigned = replace(CLAIM, receipt_signature=BOB.sign(2, CLAIM.receipt))
    yield Refused.of("a claim whose receipt the accused did not sign", "signature", sealed(unsigned))
    yield Refused.of("a claim signed after its epoch", "outside its epoch", sealed(replace(CLAIM, t=CLAIM.t + 21600)))
    late = replace(OPENED, t=NOW_S + 121)
    yield Refused.of("a verdict signed 121 s ahead of the clock", "from the future", sealed(late))
    over = replace(DENIAL, epoch=EPOCH - 9)
    yield Refused.of("a denial when the trial is over", "outside its trial", sealed(over))
    early = replace(RULING, settled_s=NOW_S + 121)
    yield Refused.of("a ruling that stands 121 s ahead of the clock", "from the future", sealed(early))
    endless = replace(RULING, epoch=EPOCH - 9, receipt_epoch=EPOCH - 9)
    yield Refused.of("a ruling that stood when the trial was long over", "outside its trial", sealed(endless))
    other = sealed(replace(RULING, settled_s=RULING.settled_s + 1))
    yield Refused.of("a ruling in another's place", "owner", other, packed_subkey=msgpack.packb(sealed(RULING).subkey))
    renumbered = sealed(replace(CLAIM, number=2))
    yield Refused.of("a claim in another's place", "owner", renumbered, packed_subkey=msgpack.packb(b"\1"))
    copied = replace(AUDIT, session=bytes(16))
    yield Refused.of("one audit for two sessions", "owner", sealed(AUDIT), packed_subkey=msgpack.packb(copied.subkey))


def _forced(record: Record) -> bytes:
    """Sign what ``seal`` would not."""
    body = record.to_body()
    signatures = tuple(AUTHOR[author].sign(record.KIND, body) for author in record.authors)
    return Envelope(record.KIND, body, signatures).to_bytes()


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
