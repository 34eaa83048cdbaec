"""FalseEvidence: whatever an accuser changes, it is refused before anything is run."""

from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.claim import MAX_EVIDENCE_BYTES, Claim
from node.agreement.offers import accept
from node.check import evidence as evidence_of
from node.check.evidence import OpenedChunk, pack, unpack_and_verify
from node.check.headers import Header, Piece
from node.commitment.chunks import NOTHING, Leaf
from node.errors import FalseEvidence
from node.merkle import root_of
from tests.node.check.session import ACCUSER, CODEC, CONSUMER, PROVIDER, held

HELD = held()
GOOD = HELD.evidence
BLOB = pack(GOOD)


def refused(evidence=GOOD, session=HELD, **changes):
    """Publish a claim that names just this evidence; say why it is refused."""
    blob, claim = session.claim(evidence, **changes)
    with pytest.raises(FalseEvidence) as caught:
        unpack_and_verify(blob, claim)
    return str(caught.value)


def with_chunk(number, **changes):
    chunk = replace(GOOD.chunks[number], **changes)
    return replace(GOOD, chunks=(*GOOD.chunks[:number], chunk, *GOOD.chunks[number + 1 :]))


def test_true_evidence_holds_and_says_what_to_run():
    blob, claim = HELD.claim()
    read = unpack_and_verify(blob, Claim.from_body(claim.to_body()))
    assert read == GOOD
    assert read.codec == CODEC
    assert [header.num_places for header in read.headers] == [64, 64, 64]
    assert read.headers[1].pieces == (Piece(64, 1, 6, 1), Piece(70, 1, 1, 1), Piece(71, 1, 57, 0))
    assert b"".join(chunk.taken for chunk in read.chunks)[-4:] == (191).to_bytes(4, "big")


def test_an_edited_input_is_refused():
    for number in range(3):
        taken = bytearray(GOOD.chunks[number].taken)
        taken[17] ^= 1
        assert "committed to other chunks" in refused(with_chunk(number, taken=bytes(taken)))


def test_an_edited_output_is_refused():
    assert "gave other bytes" in refused(replace(GOOD, given=GOOD.given[:-1] + b"!"))
    leaf = replace(GOOD.chunks[2].leaf, given=sha256(b"!").digest())
    assert "committed to other chunks" in refused(replace(with_chunk(2, leaf=leaf), given=b"!"))


def test_a_wrong_opening_is_refused():
    for change in ({"first": 1}, {"index": 7}, {"segment": 1}, {"header": bytes(32)}):
        assert "committed to other chunks" in refused(with_chunk(0, leaf=replace(GOOD.chunks[0].leaf, **change)))
    assert "committed to other chunks" in refused(replace(GOOD, rest=()))
    assert "committed to other chunks" in refused(replace(GOOD, rest=(*GOOD.rest, bytes(32))))
    assert "another header" in refused(with_chunk(0, header=Header(CODEC, (Piece(0, 1, 64, 1),)).to_bytes()))


def test_a_prefix_that_lacks_a_chunk_is_refused():
    hashes = [chunk.leaf.hash(HELD.offer.session) for chunk in GOOD.chunks]
    assert "committed to other chunks" in refused(replace(GOOD, chunks=GOOD.chunks[1:]))
    assert "committed to other chunks" in refused(replace(GOOD, chunks=GOOD.chunks[::2]))
    shorter = replace(GOOD, chunks=GOOD.chunks[:2], rest=(hashes[2], *GOOD.rest))
    assert "another chunk than is claimed" in refused(shorter)
    assert "no chunk" in refused(replace(GOOD, chunks=(), rest=(*hashes, *GOOD.rest)))


def test_another_sessions_root_or_offer_is_refused():
    other = held(b"another session.", lane=8)
    assert "another session" in refused(other.evidence)
    assert "other chunks" in refused(replace(other.evidence, offer=GOOD.offer, offer_signature=GOOD.offer_signature,
                                             accept_signature=GOOD.accept_signature))  # fmt: skip
    assert "another lane" in refused(other.evidence, session=replace(other, receipt=HELD.receipt))
    assert "other work" in refused(session=replace(HELD, receipt=replace(HELD.receipt, start=1, work=192)))
    wrong_root = replace(HELD.receipt, commitment=other.receipt.commitment)
    assert "committed to other chunks" in refused(session=replace(HELD, receipt=wrong_root))
    blob, claim = HELD.claim()
    with pytest.raises(FalseEvidence, match="another session"):
        unpack_and_verify(blob, replace(claim, session=b"s" * 16))


def test_what_nobody_signed_is_refused():
    assert "offer is not signed" in refused(replace(GOOD, offer_signature=bytes(64)))
    assert "did not accept" in refused(replace(GOOD, accept_signature=bytes(64)))
    assert "did not accept" in refused(replace(GOOD, accept_signature=accept(GOOD.offer, CONSUMER.sign)))
    assert "did not sign the receipt" in refused(receipt_signature=ACCUSER.sign(2, HELD.receipt.to_body()))


def test_other_weights_than_were_declared_are_refused():
    assert "held in another way" in refused(replace(GOOD, weights="int8"))
    assert "held in another way" in refused(replace(GOOD, adapter="a"))


def test_another_padding_than_the_session_was_opened_with_is_refused():
    for counts in ((1,), (0, 1), (2**32 - 1,)):
        assert "rows of another padding" in refused(replace(GOOD, left_padding=counts))


def test_evidence_is_the_one_that_the_claim_names():
    blob, claim = HELD.claim()
    for other, changed in (
        (blob + b"\0", claim),
        (blob[:-1], claim),
        (b"", claim),
        (blob, replace(claim, evidence=bytes(32))),
        (blob, replace(claim, evidence_bytes=len(blob) + 1)),
    ):
        with pytest.raises(FalseEvidence):
            unpack_and_verify(other, changed)
    assert "another chunk" in refused(index=3)
    assert "another chunk" in refused(segment=1)
    assert "cannot be read" in refused(blob=b"\x90")


def test_too_much_evidence_is_not_packed(monkeypatch):
    monkeypatch.setattr(evidence_of, "MAX_EVIDENCE_BYTES", len(BLOB) - 1)
    with pytest.raises(ValueError, match="the most"):
        pack(GOOD)
    assert MAX_EVIDENCE_BYTES == 64 * 2**20


def test_chunks_that_were_only_sent_again_are_in_the_tree_and_not_run():
    session = HELD.offer.session
    again = OpenedChunk(Leaf(5, 0, 0, b"h" * 32, NOTHING, b"g" * 32), b"", b"")
    chunks = (*GOOD.chunks[:2], again, GOOD.chunks[2])
    root = root_of([*(chunk.leaf.hash(session) for chunk in chunks), *GOOD.rest])
    mended = replace(HELD, receipt=replace(HELD.receipt, commitment=root), evidence=replace(GOOD, chunks=chunks))
    read = unpack_and_verify(*mended.claim())
    assert len(read.chunks) == 4
    assert read.computed == GOOD.chunks
    claimed = replace(mended.evidence, chunks=chunks[:3], given=b"", rest=(chunks[3].leaf.hash(session), *GOOD.rest))
    assert "nothing was computed" in refused(claimed, session=mended, segment=5, index=0)


@settings(max_examples=150)
@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(at, change):
    blob = bytearray(BLOB)
    blob[at] ^= change
    refused(blob=bytes(blob))


@given(st.binary(max_size=200))
def test_junk_is_refused_and_nothing_else_raised(data):
    if data:
        refused(blob=data)


def test_the_provider_is_the_one_that_is_accused():
    assert HELD.claim()[1].accused == PROVIDER.peer_id


def committed(*chunks: OpenedChunk, given: bytes):
    """A session whose provider has signed for just these chunks, however odd."""
    root = root_of([chunk.leaf.hash(HELD.offer.session) for chunk in chunks])
    evidence = replace(GOOD, chunks=chunks, given=given, rest=())
    return replace(HELD, receipt=replace(HELD.receipt, commitment=root), evidence=evidence)


def odd_chunk(header=None, taken=None, given=b"", **changes):
    header = Header(CODEC, (Piece(0, 1, 2, 0),)).to_bytes() if header is None else header
    taken = bytes(16) if taken is None else taken
    leaf = Leaf(0, 0, 0, sha256(header).digest(), sha256(taken).digest(), sha256(given).digest())
    return OpenedChunk(replace(leaf, **changes), header, taken)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ((odd_chunk(first=1),), "begins elsewhere"),
        ((odd_chunk(taken=bytes(17)),), "do not fit"),
        ((odd_chunk(), odd_chunk(taken=bytes(8), index=1)), "differ"),
        ((odd_chunk(header=b"float99\0" + bytes(15)),), "names no codec"),
        ((odd_chunk(header=b"float32\0" + bytes(14)),), "ends within"),
        ((odd_chunk(header=b"float32\0" + bytes(15)),), "describes none"),
        ((OpenedChunk(Leaf(0, 7, 0, bytes(32), NOTHING, bytes(32)), b"h", b""), odd_chunk()), "nothing was computed"),
    ],
)
def test_what_a_provider_signed_that_makes_no_sense_is_not_run(chunks, reason):
    session = committed(*chunks, given=b"")
    assert reason in refused(session.evidence, session=session)


def test_the_smallest_evidence_is_one_chunk():
    session = committed(odd_chunk(), given=b"")
    assert unpack_and_verify(*session.claim()).headers == (Header(CODEC, (Piece(0, 1, 2, 0),)),)
