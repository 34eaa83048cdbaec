"""A receipt read by a second implementation, written from docs/protocol.md alone: it shares no line with ours.

It knows msgpack from its own specification, and of cryptography SHA, Ed25519 and base58. Where a test here fails and
ours do not, the page does not say what the code does.
"""

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "records.json").read_text())
COMMITMENTS = json.loads((Path(__file__).parents[1] / "vectors" / "commitments.json").read_text())
DRAWS = json.loads((Path(__file__).parents[1] / "vectors" / "committees.json").read_text())
RECEIPTS = [vector for vector in VECTORS["records"] if vector["kind"] == 2]
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PEER_PREFIX = bytes.fromhex("002408011220")
WINDOW_EPOCHS, EPOCH_S = "window_epochs", "epoch_s"

FIELDS = (
    "provider", "consumer", "epoch", "lane", "work_kind", "seq", "manifest", "start", "end", "profile", "sessions",
    "amount", "work", "bytes_in", "bytes_out", "commitment", "t_first", "t_last",
)  # fmt: skip


# -- msgpack, canonical


def packed(value) -> bytes:
    """Write a value in the shortest form that msgpack has for it."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _packed_int(value)
    if isinstance(value, bytes):
        return _header(len(value), None, None, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, str):
        return _header(len(value.encode()), 0xA0, 31, (0xD9, 0xDA, 0xDB)) + value.encode()
    return _header(len(value), 0x90, 15, (None, 0xDC, 0xDD)) + b"".join(map(packed, value))


def _packed_int(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    for code, form, bound in ((0xCC, ">B", 2**8), (0xCD, ">H", 2**16), (0xCE, ">I", 2**32), (0xCF, ">Q", 2**64)):
        if number < bound:
            return bytes([code]) + struct.pack(form, number)
    raise ValueError(number)


def _header(length, short, most_short, codes) -> bytes:
    if short is not None and length <= most_short:
        return bytes([short | length])
    for code, form, bound in zip(codes, (">B", ">H", ">I"), (2**8, 2**16, 2**32), strict=True):
        if code is not None and length < bound:
            return bytes([code]) + struct.pack(form, length)
    raise ValueError(length)


def unpacked(data: bytes):
    """Read one value and nothing more; refuse whatever encoding again would not give."""
    value, rest = _taken(data)
    if rest or packed(value) != data:
        raise ValueError("not canonical")
    return value


def _taken(data: bytes):
    code, rest = data[0], data[1:]
    if code < 0x80:
        return code, rest
    if 0x90 <= code <= 0x9F:
        return _taken_array(code & 15, rest)
    if 0xA0 <= code <= 0xBF:
        return rest[: code & 31].decode(), rest[code & 31 :]
    if code in (0xC2, 0xC3):
        return code == 0xC3, rest
    size = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}
    number, rest = int.from_bytes(rest[: size[code]], "big"), rest[size[code] :]
    if 0xCC <= code <= 0xCF:
        return number, rest
    if code in (0xDC, 0xDD):
        return _taken_array(number, rest)
    return (rest[:number] if code <= 0xC6 else rest[:number].decode()), rest[number:]


def _taken_array(length: int, rest: bytes):
    items = []
    for _ in range(length):
        item, rest = _taken(rest)
        items.append(item)
    return items, rest


# -- what the page says of records


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def signed_form(of_type: int, body: bytes) -> bytes:
    tag = b"efed/trust/1"
    return varint(len(tag)) + tag + b"\x01" + bytes([of_type]) + varint(len(body)) + body


def has_signed(peer: bytes, of_type: int, body: bytes, signature: bytes) -> bool:
    assert peer.startswith(PEER_PREFIX)
    try:
        Ed25519PublicKey.from_public_bytes(peer[6:]).verify(signature, signed_form(of_type, body))
    except InvalidSignature:
        return False
    return True


def from_base58(text: str) -> bytes:
    number = 0
    for character in text:
        number = 58 * number + BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def read_receipt(envelope: bytes) -> tuple[dict, bytes, list[bytes]]:
    """Give the fields, the body and the signatures of an envelope that holds a receipt."""
    assert len(envelope) <= 420
    version, kind, body, signatures = unpacked(envelope)
    assert (version, kind) == (1, 2)
    return dict(zip(FIELDS, unpacked(body), strict=True)), body, signatures


def as_vector_has_it(name: str, value):
    return value.hex() if name in ("manifest", "profile", "commitment") else value


@pytest.mark.parametrize("vector", RECEIPTS, ids=lambda vector: vector["name"])
def test_a_receipt_is_read_checked_and_placed_by_the_page_alone(vector):
    fields, body, signatures = read_receipt(bytes.fromhex(vector["envelope"]))
    provider, consumer = fields["provider"], fields["consumer"]
    assert (provider, consumer) == tuple(from_base58(vector["fields"][name]) for name in ("provider", "consumer"))
    for name in FIELDS[2:]:
        assert as_vector_has_it(name, fields[name]) == vector["fields"][name]

    assert [
        has_signed(peer, 2, body, signature) for peer, signature in zip((provider, consumer), signatures, strict=True)
    ] == [True] * 2
    assert not has_signed(provider, 2, body, signatures[1])
    assert not has_signed(provider, 1, body, signatures[0]), "a signature counts for its kind alone"

    blocks = 1 if fields["work_kind"] == 6 else fields["end"] - fields["start"]
    assert fields["work"] == fields["amount"] * blocks
    assert fields["t_first"] <= fields["t_last"]
    assert fields["amount"] <= 50_000 * (fields["t_last"] - fields["t_first"] + 1)

    key = packed(["efed1", 2, provider, fields["epoch"]])
    assert hashlib.sha1(key).hexdigest() == vector["dht_id"]
    subkey = consumer + struct.pack(">IB", fields["lane"], fields["work_kind"])
    assert subkey.hex() == vector["subkey"]
    rules = vector["rules"]
    window_s = (fields["epoch"] + 1 + rules[WINDOW_EPOCHS]) * rules[EPOCH_S]
    assert window_s + fields["seq"] / 1024 == vector["expires_s"]


def test_the_bytes_that_the_page_shows_are_those_of_the_vector():
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    (vector,) = [each for each in RECEIPTS if each["name"] == "a receipt of decoding"]
    shown = re.findall(r"^\| (\d+) \| `([0-9a-f .]+)`", page[page.index("Byte by byte") :], re.MULTILINE)
    assert len(shown) == 20
    for offset, text in shown:
        first, _, last = text.replace(" ", "").partition("...")
        at = vector["envelope"][2 * int(offset) :]
        assert at.startswith(first), f"offset {offset}"
        if last:
            assert at[: 2 * (2 + int(first[2:4], 16))].endswith(last), f"offset {offset}"


def test_a_receipt_that_one_bit_was_changed_in_is_signed_by_nobody():
    fields, body, signatures = read_receipt(bytes.fromhex(RECEIPTS[0]["envelope"]))
    fields["amount"] += 1
    changed = packed([fields[name] for name in FIELDS])
    assert len(changed) == len(body)
    assert not has_signed(fields["provider"], 2, changed, signatures[0])


@pytest.mark.parametrize("data", ["cc01", "cd00ff", "dc000101", "d90161", "c5000161", "0100", "9201", "80", "ff", "c0"])
def test_what_is_not_in_its_shortest_form_or_of_no_type_of_ours_is_no_value(data):
    with pytest.raises((ValueError, IndexError, KeyError)):
        unpacked(bytes.fromhex(data))


def vector_of(kind: int) -> tuple[dict, list, list[bytes], bytes]:
    vector = next(each for each in VECTORS["records"] if each["kind"] == kind)
    _, number, body, signatures = unpacked(bytes.fromhex(vector["envelope"]))
    assert number == kind
    return vector, unpacked(body), signatures, body


def test_an_identity_and_its_proof_of_work_are_checked_by_the_page_alone():
    vector, (peer, created, epoch, nonce, _, _), (signature,), body = vector_of(1)
    assert has_signed(peer, 1, body, signature)
    inner = hashlib.sha256(signed_form(1, packed([peer, created, nonce]))).digest()
    bits = 256 - int.from_bytes(hashlib.sha256(inner).digest(), "big").bit_length()
    assert bits >= vector["rules"]["proof_of_work_bits"] > 0
    key = packed(["efed1", 1, hashlib.sha256(peer).digest()[0]])
    assert (hashlib.sha1(key).hexdigest(), peer.hex()) == (vector["dht_id"], vector["subkey"])
    assert (epoch + 1 + vector["rules"][WINDOW_EPOCHS]) * vector["rules"][EPOCH_S] == vector["expires_s"]


def test_a_proof_of_two_receipts_is_checked_by_the_page_alone():
    vector, (accused, first, by_first, second, by_second), signatures, body = vector_of(4)
    assert signatures == []
    assert first < second
    receipts = [dict(zip(FIELDS, unpacked(each), strict=True)) for each in (first, second)]
    slots = [
        [each[name] for name in ("provider", "consumer", "epoch", "lane", "work_kind", "seq")] for each in receipts
    ]
    assert slots[0] == slots[1]
    assert accused in slots[0][:2]
    assert has_signed(accused, 2, first, by_first)
    assert has_signed(accused, 2, second, by_second)
    assert hashlib.sha1(packed(["efed1", 4, accused])).hexdigest() == vector["dht_id"]
    assert hashlib.sha256(body).hexdigest() == vector["subkey"]
    assert (slots[0][2] + 1 + vector["rules"]["evidence_epochs"]) * vector["rules"][EPOCH_S] == vector["expires_s"]


def test_a_snapshot_is_placed_by_the_page_alone():
    vector, (publisher, first, epoch, *_), (signature,), body = vector_of(7)
    assert first <= epoch
    assert has_signed(publisher, 7, body, signature)
    assert hashlib.sha1(packed(["efed1", 7, publisher])).hexdigest() == vector["dht_id"]
    assert struct.pack(">I", epoch).hex() == vector["subkey"]


def test_an_offer_and_its_acceptance_are_checked_by_the_page_alone():
    offer, fields = COMMITMENTS["offer"], COMMITMENTS["offer"]["fields"]
    body = bytes.fromhex(offer["body"])
    session, consumer, provider, manifest, start, end, profile, padding, lane, max_tokens, t = unpacked(body)
    assert (consumer, provider) == (from_base58(fields["consumer"]), from_base58(fields["provider"]))
    assert (session.hex(), manifest.hex(), profile.hex()) == (fields["session"], fields["manifest"], fields["profile"])
    numbers = [start, end, lane, max_tokens, t]
    assert numbers == [fields[name] for name in ("start", "end", "lane", "max_tokens", "t")]
    assert has_signed(consumer, 128, body, bytes.fromhex(offer["signature"]))
    accept = COMMITMENTS["accept"]
    assert hashlib.sha256(body).hexdigest() == accept["body"]
    assert has_signed(provider, 129, hashlib.sha256(body).digest(), bytes.fromhex(accept["signature"]))
    terms = [COMMITMENTS["profile"][name] for name in ("weights", "codec", "adapter")]
    digest = hashlib.sha256(packed(["efedllm/profile/1", *terms])).hexdigest()
    assert digest == COMMITMENTS["profile"]["digest"] == profile.hex()
    counts = struct.pack(">2I", *COMMITMENTS["padding"]["counts"])
    digests = [hashlib.sha256(packed(["efedllm/padding/1", each])).hexdigest() for each in (counts, b"")]
    assert digests == [COMMITMENTS["padding"][name] for name in ("digest", "none")]
    assert padding.hex() == digests[0]


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, of leaves that are hashed already."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


def test_leaves_and_roots_follow_from_the_page_alone():
    session = bytes.fromhex(COMMITMENTS["offer"]["fields"]["session"])
    hashes = []
    for vector in COMMITMENTS["leaves"]:
        leaf = vector["leaf"]
        numbers = struct.pack(">III", leaf["segment"], leaf["index"], leaf["first"])
        digests = b"".join(bytes.fromhex(leaf[name]) for name in ("header", "taken", "given"))
        hashes.append(hashlib.sha256(b"\x00" + session + numbers + digests).digest())
        assert hashes[-1].hex() == vector["hash"]
    assert [tree_hash(hashes[:size]).hex() for size in range(len(hashes) + 1)] == COMMITMENTS["roots"]


def test_a_chunk_of_one_row_is_hashed_by_the_page_alone():
    vector = COMMITMENTS["chunks"][0]
    (six, one), (before, behind) = vector["steps"], vector["chunks"]
    payload = bytes.fromhex(six["payload"])
    header = b"bfloat16\x00" + struct.pack(">IHIIB", 60, 1, 4, 0, 0)
    assert hashlib.sha256(header).hexdigest() == before["header"]
    assert hashlib.sha256(payload[:8]).hexdigest() == before["digest"]
    header = b"bfloat16\x00" + struct.pack(">IHIIB", 64, 1, 2, 1, 0) + struct.pack(">IHIIB", 66, 1, 1, 1, 0)
    assert hashlib.sha256(header).hexdigest() == behind["header"]
    assert hashlib.sha256(payload[8:] + bytes.fromhex(one["payload"])).hexdigest() == behind["digest"]


def test_a_voucher_and_a_checkpoint_are_read_by_the_page_alone():
    voucher, chunk = COMMITMENTS["voucher"], COMMITMENTS["voucher"]["chunk"]
    body = bytes.fromhex(voucher["body"])
    _, segment, index, first, header, digest = unpacked(body)
    assert [segment, index, first, header.hex(), digest.hex()] == list(chunk.values())
    signers = [from_base58(peer) for peer in COMMITMENTS["peer_ids"].values()]
    assert any(has_signed(peer, 130, body, bytes.fromhex(voucher["signature"])) for peer in signers)
    number, steps, leaves, receipts = unpacked(bytes.fromhex(COMMITMENTS["checkpoint"]["body"]))
    assert (number, steps, len(leaves)) == tuple(
        COMMITMENTS["checkpoint"][name] for name in ("number", "steps", "leaves")
    )
    ((receipt, by_provider),) = receipts
    fields = dict(zip(FIELDS, unpacked(receipt), strict=True))
    assert has_signed(fields["provider"], 2, receipt, by_provider)
    assert fields["commitment"].hex() == COMMITMENTS["roots"][len(leaves)]


def place_of(kind: int, *parts) -> str:
    return hashlib.sha1(packed(["efed1", kind, *parts])).hexdigest()


def end_of(vector: dict, epoch: int, epochs: str, seq: int = 0) -> float:
    return (epoch + 1 + vector["rules"][epochs]) * vector["rules"][EPOCH_S] + seq / 1024


def test_an_audit_is_checked_and_placed_by_the_page_alone():
    vector, fields, (signature,), body = vector_of(3)
    auditor, epoch, provider, consumer, receipt_epoch, lane, work_kind, *rest = fields
    receipt, manifest, start, end, profile, session, segment, index, num_chunks, finding, *errors, calibration, t = rest
    assert has_signed(auditor, 3, body, signature)
    assert provider not in (auditor, consumer)
    assert receipt_epoch <= epoch == t // vector["rules"][EPOCH_S]
    assert [len(each) for each in (receipt, manifest, profile, session, calibration)] == [32, 32, 32, 16, 32]
    assert start < end
    assert max(segment, index, num_chunks) <= 2**20
    assert finding in (1, 2)
    assert errors == sorted(errors)
    assert place_of(3, auditor, epoch) == vector["dht_id"]
    audited = packed([provider, consumer, receipt_epoch, lane, work_kind, session])
    assert hashlib.sha256(audited).hexdigest() == vector["subkey"]
    assert end_of(vector, epoch, WINDOW_EPOCHS, num_chunks) == vector["expires_s"]


def test_a_claim_is_checked_and_placed_by_the_page_alone():
    vector, fields, (signature,), body = vector_of(5)
    accuser, epoch, number, receipt, by_accused, session, _, _, error, evidence, evidence_bytes, t = fields
    assert has_signed(accuser, 5, body, signature)
    work = dict(zip(FIELDS, unpacked(receipt), strict=True))
    assert has_signed(work["provider"], 2, receipt, by_accused)
    assert work["provider"] != accuser
    assert epoch - work["epoch"] in (0, 1)
    assert epoch == t // vector["rules"][EPOCH_S]
    assert (len(session), len(evidence)) == (16, 32)
    assert (number <= 2, error <= 10**9, 1 <= evidence_bytes <= 2**26) == (True,) * 3
    assert place_of(5, accuser, epoch) == vector["dht_id"]
    assert bytes([number]).hex() == vector["subkey"]
    assert end_of(vector, epoch, "evidence_epochs") == vector["expires_s"]


def test_a_denial_and_a_verdict_name_the_claim_by_the_page_alone():
    _, (accuser, epoch, *_), _, claim_body = vector_of(5)
    claim = hashlib.sha256(claim_body).digest()
    vector, (contester, of_epoch, denied, denied_accuser, level, _), (signature,), body = vector_of(8)
    assert has_signed(contester, 8, body, signature)
    assert (of_epoch, denied, denied_accuser, level) == (epoch, claim, accuser, 1)
    assert place_of(8, contester, epoch) == vector["dht_id"]
    assert (claim + bytes([level])).hex() == vector["subkey"]

    vectors = [each for each in VECTORS["records"] if each["kind"] == 6]
    halves = []
    for vector in vectors:
        _, _, body, (signature,) = unpacked(bytes.fromhex(vector["envelope"]))
        member, of_epoch, judged, level, phase, *said = unpacked(body)
        assert has_signed(member, 6, body, signature)
        assert (of_epoch, judged) == (epoch, claim)
        assert place_of(6, member, epoch) == vector["dht_id"]
        assert (claim + bytes([level, phase])).hex() == vector["subkey"]
        assert end_of(vector, epoch, "evidence_epochs") == vector["expires_s"]
        halves.append(said)
    (commitment, *nothing, _), (empty, opinion, salt, error, _) = halves
    assert (nothing, empty) == ([0, b"", 0], b"")
    assert hashlib.sha256(packed(["efedllm/verdict/1", member, claim, level, opinion, salt])).digest() == commitment
    assert (opinion, error) == (1, 561_234)


def test_a_ruling_names_the_claim_and_is_placed_by_the_page_alone():
    _, (accuser, epoch, number, receipt, _, session, segment, index, *_, claim_t), _, claim_body = vector_of(5)
    work = dict(zip(FIELDS, unpacked(receipt), strict=True))
    for vector in (each for each in VECTORS["records"] if each["kind"] == 9):
        _, _, body, (signature,) = unpacked(bytes.fromhex(vector["envelope"]))
        anchor, of_epoch, claim, *what, outcome, backer, settled_s = unpacked(body)
        assert has_signed(anchor, 9, body, signature)
        assert (of_epoch, claim) == (epoch, hashlib.sha256(claim_body).digest())
        slot = [work[name] for name in ("provider", "consumer", "epoch", "lane", "work_kind")]
        assert what == [accuser, number, *slot, session, segment, index]
        assert (outcome, backer, settled_s) in {(1, 0, claim_t + 18_000), (4, 0, claim_t)}
        assert place_of(9, anchor, epoch // 16) == vector["dht_id"]
        assert hashlib.sha256(body).hexdigest() == vector["subkey"]
        assert end_of(vector, epoch, "evidence_epochs") == vector["expires_s"]


def test_a_calibration_is_checked_and_placed_by_the_page_alone():
    vector, (manifest, signer, epoch, seq, file, file_bytes, rows, t), (signature,), body = vector_of(20)
    assert has_signed(signer, 20, body, signature)
    assert (len(manifest), len(file), epoch) == (32, 32, t // vector["rules"][EPOCH_S])
    assert 1 <= file_bytes <= 2**26
    assert [row[:3] for row in rows] == sorted(row[:3] for row in rows)
    assert all(len(row) == 9 and row[3:7] == sorted(row[3:7]) for row in rows)
    assert place_of(20, manifest) == vector["dht_id"]
    assert signer.hex() == vector["subkey"]
    assert end_of(vector, epoch, WINDOW_EPOCHS, seq) == vector["expires_s"]


def minus_log2_of_the_page(number: int) -> int:
    exponent = len(bin(number)) - 3
    mantissa = number * 2**63 // 2**exponent
    log = exponent
    for _ in range(32):
        mantissa = mantissa * mantissa // 2**63
        bit = int(mantissa >= 2**64)
        mantissa //= 1 + bit
        log = 2 * log + bit
    return 64 * 2**32 - log


def test_who_judges_a_claim_is_drawn_by_the_page_alone():
    for number, log in DRAWS["minus_log2"]:
        assert minus_log2_of_the_page(int(number)) == int(log)
    _, (_, _, _, receipt, *_), _, _ = vector_of(5)
    for draw in DRAWS["ranks"]:
        array = packed(["efedllm/committee/1", hashlib.sha256(receipt).digest(), draw["level"]])
        seed = hashlib.sha256(array).digest()
        assert seed.hex() == draw["seed"]
        number = int.from_bytes(hashlib.sha256(seed + from_base58(draw["peer"])).digest()[:8], "big") + 1
        rank = minus_log2_of_the_page(number) * 2**40 // int(draw["credibility"])
        assert rank == int(draw["rank"])
