"""Fuzz what is read of the DHT's records: the codec, every kind's parse, the validator, an exported identity."""

import contextlib
import json
from dataclasses import fields as fields_of
from dataclasses import replace
from hashlib import sha256

import base58
import msgpack
from hivemind.dht.crypto import DHTRecord

from dht.audit import Audit, Finding
from dht.calibration import Calibration, Threshold
from dht.claim import Claim
from dht.codec import MAX_ITEMS, decode, encode
from dht.contest import Contest
from dht.equivocation import Equivocation, prove
from dht.errors import BadAddress, BadJoinCode, BadRecord, IdentityDamaged, WrongPassphrase
from dht.ident import Ident, Role, Succession
from dht.identity import Identity, verify
from dht.identity_export import Cost, _Sealed, exported_peer_id, open_identity, seal_identity
from dht.parameters import JoinCode, SwarmParameters, parse_join
from dht.records import ENVELOPE_VERSION, Envelope, ManifestRecord, Record, dht_id, place
from dht.rules import DEFAULT_RULES, Rules
from dht.ruling import Backer, Outcome, RulingRecord
from dht.snapshot import Snapshot
from dht.validation import MAX_SUBKEY_BYTES, REGISTRY, RecordValidator, is_regional, parse_envelope
from dht.verdict import Opinion, commit, reveal
from dht.work import WorkKind
from tests.dht.samples import EPOCH, EPOCH_BEGAN, MANIFEST, announcement, receipt
from tests.fuzz.draw import Draw, mutated

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in range(2))
PEOPLE = {each.peer_id: each for each in (ALICE, BOB)}
NOW = EPOCH_BEGAN + 100.0

ANY_RULES = (DEFAULT_RULES, Rules(1, 1, 1), Rules(1000, 2**16, 2**16), Rules(2**24, 2**16, 2**16, 64))


def _equivocation() -> Equivocation:
    one, other = (
        Envelope(made.KIND, made.to_body(), tuple(each.sign(made.KIND, made.to_body()) for each in (ALICE, BOB)))
        for made in (receipt(ALICE, BOB), receipt(ALICE, BOB, amount=65, work=260))
    )
    return prove(ALICE.peer_id, one, other)


BLOB = bytes(32)
PPM = (3, 5, 8)
WORK = receipt(BOB, ALICE).to_body()
ROW = Threshold("bfloat16", "int8", 4, 10, 20, 30, 40, 5, 1600)

SAMPLES: tuple[Record, ...] = (
    replace(announcement(ALICE, t=int(NOW)), addresses=("/ip4/10.0.0.1/tcp/1",), neighbours=((BOB.peer_id, 5),)),
    ManifestRecord(MANIFEST, ALICE.peer_id, int(NOW), 60, "gpt2", "gpt2", 12, 768, 50257),
    receipt(ALICE, BOB),
    receipt(BOB, ALICE, work_kind=WorkKind.RELAY, work=64),
    _equivocation(),
    Ident(ALICE.peer_id, EPOCH - 1, EPOCH, 7, Role.SERVER, "here"),
    Succession(ALICE.peer_id, BOB.peer_id, EPOCH),
    Snapshot(ALICE.peer_id, EPOCH - 2, EPOCH - 1, 5, bytes(32), bytes(32)),
    Audit(
        ALICE.peer_id,
        EPOCH,
        BOB.peer_id,
        ALICE.peer_id,
        EPOCH,
        7,
        WorkKind.DECODE,
        BLOB,
        MANIFEST,
        0,
        4,
        BLOB,
        bytes(16),
        0,
        1,
        2,
        Finding.PASS,
        *PPM,
        BLOB,
        int(NOW),
    ),
    Claim(ALICE.peer_id, EPOCH, 0, WORK, BOB.sign(2, WORK), bytes(16), 0, 1, 500_000, BLOB, 1000, int(NOW)),
    Contest(BOB.peer_id, EPOCH, BLOB, ALICE.peer_id, 1, int(NOW)),
    commit(BOB.peer_id, EPOCH, BLOB, 1, Opinion.UPHELD, BLOB, int(NOW)),
    reveal(BOB.peer_id, EPOCH, BLOB, 1, Opinion.UPHELD, BLOB, 500_000, int(NOW)),
    RulingRecord(
        ALICE.peer_id,
        EPOCH,
        BLOB,
        ALICE.peer_id,
        2,
        BOB.peer_id,
        ALICE.peer_id,
        EPOCH,
        7,
        WorkKind.DECODE,
        bytes(16),
        0,
        1,
        Outcome.REJECTED,
        Backer.ACCUSER,
        int(NOW),
    ),
    Calibration(MANIFEST, ALICE.peer_id, EPOCH, 1, BLOB, 1000, (ROW,), int(NOW)),
    SwarmParameters(ALICE.peer_id, int(NOW) - 100, 10**8, "lab", private=False, anchors=(BOB.peer_id,)),
)
"""One valid record of each kind, and more where that opens other ways."""


def codec(data: bytes) -> None:
    """Any bytes are refused, or are the one encoding of their value."""
    for bound in (len(data), 64):
        try:
            value = decode(data, bound)
        except BadRecord:
            continue
        assert len(data) <= bound
        assert encode(value) == data
        assert not isinstance(value, list) or len(value) <= MAX_ITEMS


def drawn_body(draw: Draw, sample: Record) -> bytes:
    """A body of a record's kind: as it is, changed field by field, changed byte by byte, or junk."""
    body = sample.to_body()
    match draw.number(3):
        case 0:
            return body
        case 1:
            at = draw.number(len(body) - 1)
            return body[:at] + draw.some_bytes(8) + body[at + draw.number(8) :]
        case 2:
            return draw.some_bytes(600)
    try:
        return encode(mutated(draw, msgpack.unpackb(body)))
    except (ValueError, TypeError):
        return body


def ask_everything(record: Record, envelope: bytes, rules: Rules, now_s: float) -> None:
    """Whatever a parsed record is asked, it answers."""
    placed = place(record, envelope, rules)
    assert len(placed.key) < 256
    assert len(msgpack.packb(placed.subkey)) <= MAX_SUBKEY_BYTES
    assert isinstance(placed.expires_s, float)
    assert record.objection(rules, now_s) is None or isinstance(record.objection(rules, now_s), str)
    assert record.is_proven() in (True, False)
    assert all(isinstance(author, str) for author in record.authors)
    hash(record)
    assert {field.name for field in fields_of(record)}


def bodies(data: bytes) -> None:
    """Every kind refuses a body, or has read it whole."""
    draw = Draw(data)
    sample = draw.one_of(SAMPLES)
    body = drawn_body(draw, sample)
    kind = type(sample) if not draw.rarely() else draw.one_of(tuple(REGISTRY.values()))
    try:
        record = kind.from_body(body)
    except BadRecord:
        return
    assert record.to_body() == body
    ask_everything(record, body, draw.one_of(ANY_RULES), draw.one_of((0.0, NOW, 2.0**40)))


def drawn_envelope(draw: Draw) -> tuple[bytes, Record]:
    """An envelope around a drawn body, signed by whoever has to, so that more than the signature is looked at."""
    sample = draw.one_of(SAMPLES)
    body = drawn_body(draw, sample)
    kind = sample.KIND if not draw.rarely() else draw.number(255)
    signatures = [PEOPLE[author].sign(kind, body) for author in sample.authors]
    if draw.rarely():
        signatures = mutated(draw, signatures)
    try:
        return encode(mutated(draw, [ENVELOPE_VERSION, kind, body, signatures]) if draw.rarely() else
                      [ENVELOPE_VERSION, kind, body, signatures]), sample  # fmt: skip
    except (ValueError, TypeError):
        return draw.rest(), sample


def envelopes(data: bytes) -> None:
    """The validator gives one verdict about anything, and never believes what is not signed or not in its place."""
    draw = Draw(data)
    envelope, _ = drawn_envelope(draw)
    rules = draw.one_of(ANY_RULES)
    validator = RecordValidator(clock=lambda: NOW, rules=rules)
    validator.knows_rules = not draw.rarely()
    key, subkey, expires_s = draw.blob(20), b"\xc4\x01a", float(draw.edge())
    opened = None
    try:
        opened, placed = parse_envelope(envelope, rules)
        key, subkey, expires_s = dht_id(placed.key), msgpack.packb(placed.subkey), placed.expires_s
    except BadRecord:
        pass
    if draw.rarely():
        key = draw.some_bytes(21)
    if draw.rarely():
        subkey = draw.one_of((msgpack.packb(BOB.peer_id_bytes), draw.some_bytes(130)))
    if draw.rarely():
        expires_s = draw.one_of((float("nan"), float("inf"), float("-inf"), -1.0, 0.0, expires_s + 1, 1e300))
    verdicts = [validator.validate(DHTRecord(key, subkey, envelope, expires_s)) for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert validator.refusals.total() == verdicts.count(False)
    assert len(validator._verified) <= 1
    assert is_regional(envelope) in (True, False)
    if verdicts[0]:
        assert opened is not None
        assert key == dht_id(placed.key)
        assert msgpack.unpackb(subkey) == placed.subkey
        assert expires_s == placed.expires_s > NOW
        authors = zip(placed.record.authors, opened.signatures, strict=True)
        assert all(verify(PEOPLE[each].peer_id_bytes, opened.kind, opened.body, by) for each, by in authors)


def anything_validated(data: bytes) -> None:
    """Key, subkey, value and expiry are all the peer's own."""
    draw = Draw(data)
    record = DHTRecord(draw.some_bytes(40), draw.some_bytes(200), draw.some_bytes(5000), float(draw.edge()))
    validator = RecordValidator()
    assert validator.validate(record) is False
    assert validator.refusals.total() == 1


EXPORTED = seal_identity(ALICE, "passphrase", salt=bytes(16), nonce=bytes(12), cost=Cost(2, 1, 1))


def exported(data: bytes) -> None:
    """A text is opened, or said to be damaged; what says itself whole need not be."""
    draw = Draw(data)
    match draw.number(2):
        case 0:
            text = draw.rest().decode("utf-8", "surrogatepass" if draw.rarely() else "replace")
        case 1:
            at = draw.number(len(EXPORTED) - 1)
            text = EXPORTED[:at] + draw.some_bytes(12).decode("latin-1") + EXPORTED[at + draw.number(12) :]
        case _:
            text = _changed_export(draw)
    try:
        exported_peer_id(text)
        cost = _Sealed.from_text(text).cost
        if cost.n * cost.r * cost.p < 2**12:
            assert open_identity(text, "passphrase").peer_id == ALICE.peer_id
    except (IdentityDamaged, WrongPassphrase):
        return


def _changed_export(draw: Draw) -> str:
    """Change fields, and make the checksum fit again where that is possible."""
    fields = json.loads(EXPORTED)
    for _ in range(1 + draw.number(2)):
        name = draw.one_of(tuple(fields))
        fields[name] = draw.one_of(
            (
                None,
                True,
                [],
                {},
                "",
                0,
                1,
                2,
                4,
                -1,
                1.0,
                2**17,
                2**70,
                "\ud800",
                " " + str(fields[name]),
                draw.number(9),
            )
        )
    try:
        cost = Cost(fields["n"], fields["r"], fields["p"])
        raw = (bytes.fromhex(fields[name]) for name in ("salt", "nonce", "sealed_seed"))
        salt, nonce, secret = raw
        fields["checksum"] = _Sealed(fields["peer_id"], cost, salt, nonce, secret).checksum()
    except (ValueError, TypeError, KeyError):
        pass
    return json.dumps(fields)


def join_codes(data: bytes) -> None:
    """A join code is read, or its user told what is wrong."""
    draw = Draw(data)
    payload = data
    if draw.flag():
        with contextlib.suppress(ValueError, TypeError):
            where = [["/ip4/1.2.3.4/tcp/5", ALICE.peer_id_bytes]]
            payload = b"\x01" + encode(mutated(draw, ["lab", where, draw.blob(32), b""]))
    checked = payload + sha256(b"efed join code" + payload).digest()[:4]
    for text in (data.decode("utf-8", "replace"), base58.b58encode(checked).decode()):
        try:
            code = parse_join(text)
        except (BadJoinCode, BadAddress):
            continue
        assert JoinCode.parse(code.encode()) == code
