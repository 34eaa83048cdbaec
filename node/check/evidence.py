"""The evidence of a claim: everything that someone who trusts neither side needs to run a chunk again.

It holds what both signed when the session began, all chunks up to the claimed one as the accused committed to them,
with the bytes that went in, and the bytes that came out of the last:

    claim ── receipt, signed by the accused ── root ──┬── leaf 0 ── header 0, bytes in
                   │ lane, span, profile              ├── ...
    offer, signed by both ── session                  ├── leaf i ── header i, bytes in, bytes out
                                                      └── hashes of the leaves behind

All of it is checked before anything is run: signatures, terms, leaves, root, headers, bytes. So an accuser cannot
change a byte on either side, leave out a chunk of the prefix, or take another session's. What it cannot show is whether
the work was right; that is for whoever runs it. Pure; hashes up to 64 MiB, so it does not run in the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from dht.claim import MAX_EVIDENCE_BYTES, Claim
from dht.codec import MAX_ITEMS, Fields, Value, decode, encode
from dht.domains import Domain
from dht.errors import BadRecord
from dht.identity import peer_id_to_bytes, verify
from dht.work import Receipt
from node.agreement.offers import Offer, is_accepted, pack_padding, padding_digest, profile_digest
from node.check.headers import MAX_HEADER_BYTES, Header
from node.commitment.chunks import Leaf
from node.errors import FalseEvidence
from node.merkle import root_of
from node.wire import MAX_BATCH

MAX_CHUNKS = MAX_ITEMS
"""Chunks that one piece of evidence opens: of a session with one row, 16,384 positions."""

MAX_NAME_BYTES = 64
"""Longest name of what weights are held in, or of an adapter."""

_MAX_NUMBER = 2**32 - 1


@dataclass(frozen=True, slots=True)
class OpenedChunk:
    """A chunk that the accused committed to, with what its hashes are of."""

    leaf: Leaf
    """As it was committed to; its voucher is not part of evidence."""
    header: bytes
    """What ``leaf.header`` is the sha256 of; empty where outputs were only sent again."""
    taken: bytes
    """The bytes that went in, as they are hashed; none where outputs were only sent again."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an accuser hands out."""

    offer: bytes
    """Body of the session's offer."""
    offer_signature: bytes
    """The consumer's, 64 bytes."""
    accept_signature: bytes
    """The accused's, over the offer, 64 bytes."""
    weights: str
    """What the accused held its weights in, as it announced; the receipt's profile is over this, codec and adapter."""
    adapter: str
    """Name of the adapter that was applied; empty: none."""
    left_padding: tuple[int, ...]
    """Positions at the start of each row that are no text; empty: there are none."""
    chunks: tuple[OpenedChunk, ...]
    """All chunks of the session's tree from the first to the claimed one, in the tree's order."""
    given: bytes
    """The bytes that came out of the last of them."""
    rest: tuple[bytes, ...] = ()
    """Hashes of the leaves behind it, 32 bytes each."""

    @property
    def num_bytes(self) -> int:
        """How much it holds of what went in and came out; packed it is larger by a little."""
        return len(self.given) + sum(len(chunk.header) + len(chunk.taken) for chunk in self.chunks)

    @property
    def codec(self) -> str:
        """In which the session's hidden states travelled."""
        return self.headers[-1].codec

    @property
    def headers(self) -> tuple[Header, ...]:
        """What went in, in order: the headers of all chunks that were computed."""
        return tuple(Header.from_bytes(chunk.header) for chunk in self.computed)

    @property
    def computed(self) -> tuple[OpenedChunk, ...]:
        """All chunks but those in which outputs were only sent again."""
        return tuple(chunk for chunk in self.chunks if not chunk.leaf.is_resent)


def pack(evidence: Evidence) -> bytes:
    """Write evidence as it is handed out; its sha256 and size stand in the claim.

    Raises:
        ValueError: it is larger than evidence may be.
    """
    opened: list[Value] = [
        [leaf.segment, leaf.index, leaf.first, leaf.header, leaf.given, chunk.header, chunk.taken]
        for chunk in evidence.chunks
        for leaf in [chunk.leaf]
    ]
    blob = encode(
        [
            evidence.offer,
            evidence.offer_signature,
            evidence.accept_signature,
            evidence.weights,
            evidence.adapter,
            pack_padding(evidence.left_padding),
            opened,
            evidence.given,
            b"".join(evidence.rest),
        ]
    )
    if len(blob) > MAX_EVIDENCE_BYTES:
        raise ValueError(f"{len(blob)} bytes of evidence, where {MAX_EVIDENCE_BYTES} are the most")
    return blob


def unpack_and_verify(blob: bytes, claim: Claim) -> Evidence:
    """Read the evidence of a claim, and check that the accused has signed for all of it.

    Args:
        blob: As it came from the accuser.
        claim: Validated.

    Returns:
        What can be run again: every byte in it is one that the accused committed to.

    Raises:
        FalseEvidence: it is not what the claim names, or does not show what it must.
    """
    _need(len(blob) == claim.evidence_bytes, "It has another size than the claim says.")
    _need(sha256(blob).digest() == claim.evidence, "It is not what the claim names.")
    try:
        evidence = _read(blob)
        offer = Offer.from_body(evidence.offer)
    except BadRecord as error:
        raise FalseEvidence(f"It cannot be read: {error}.") from error
    receipt = claim.work
    _check_terms(evidence, offer, claim, receipt)
    _check_chunks(evidence, claim, receipt)
    _check_bytes(evidence, receipt)
    return evidence


def _need(holds: bool, sentence: str) -> None:
    if not holds:
        raise FalseEvidence(sentence)


def _read(blob: bytes) -> Evidence:
    fields = Fields(decode(blob, MAX_EVIDENCE_BYTES))
    evidence = Evidence(
        offer=fields.some_bytes("offer", Offer.MAX_BYTES),
        offer_signature=fields.blob("offer_signature", 64),
        accept_signature=fields.blob("accept_signature", 64),
        weights=fields.text("weights", MAX_NAME_BYTES),
        adapter=fields.text("adapter", MAX_NAME_BYTES),
        left_padding=_read_padding(fields.some_bytes("left_padding", 4 * MAX_BATCH)),
        chunks=tuple(_read_chunks(fields.items("chunks", MAX_CHUNKS))),
        given=fields.some_bytes("given", MAX_EVIDENCE_BYTES),
        rest=tuple(_cut(fields.some_bytes("rest", MAX_EVIDENCE_BYTES))),
    )
    fields.end()
    return evidence


def _read_padding(counts: bytes) -> tuple[int, ...]:
    if len(counts) % 4:
        raise BadRecord("counts of padding of other lengths than 4 bytes")
    return tuple(int.from_bytes(counts[at : at + 4], "big") for at in range(0, len(counts), 4))


def _read_chunks(items: list[object]) -> Iterator[OpenedChunk]:
    for item in items:
        fields = Fields(item)
        segment, index, first = (fields.uint(name, _MAX_NUMBER) for name in ("segment", "index", "first"))
        header_hash, given = fields.blob("header hash", 32), fields.blob("given", 32)
        header = fields.some_bytes("header", MAX_HEADER_BYTES)
        taken = fields.some_bytes("taken", MAX_EVIDENCE_BYTES)
        fields.end()
        leaf = Leaf(segment, index, first, header_hash, sha256(taken).digest(), given)
        yield OpenedChunk(leaf, header, taken)


def _cut(hashes: bytes) -> Iterator[bytes]:
    if len(hashes) % 32:
        raise BadRecord("hashes of other lengths than 32 bytes")
    for at in range(0, len(hashes), 32):
        yield hashes[at : at + 32]


def _check_terms(evidence: Evidence, offer: Offer, claim: Claim, receipt: Receipt) -> None:
    """The session is one that both agreed to, and the one that the receipt counts."""
    _need(offer.session == claim.session, "The offer is for another session.")
    parties = (offer.provider, offer.consumer, offer.lane) == (receipt.provider, receipt.consumer, receipt.lane)
    _need(parties, "The offer is not of the receipt's parties, or for another lane.")
    terms = offer.terms == (receipt.manifest, receipt.start, receipt.end, receipt.profile)
    _need(terms, "The offer is for other work than the receipt.")
    consumer = peer_id_to_bytes(offer.consumer)
    _need(verify(consumer, Domain.OFFER, evidence.offer, evidence.offer_signature), "The offer is not signed.")
    _need(padding_digest(evidence.left_padding) == offer.padding, "The offer is for rows of another padding.")
    _need(is_accepted(offer, evidence.accept_signature, verify), "The accused did not accept the offer.")


def _check_chunks(evidence: Evidence, claim: Claim, receipt: Receipt) -> None:
    """The chunks are those that the accused committed to, from the first to the one that is claimed."""
    _need(claim.is_proven(), "The accused did not sign the receipt.")
    hashes = [chunk.leaf.hash(claim.session) for chunk in evidence.chunks]
    _need(root_of([*hashes, *evidence.rest]) == receipt.commitment, "The accused committed to other chunks.")
    _need(bool(evidence.chunks), "It holds no chunk.")
    last = evidence.chunks[-1].leaf
    _need((last.segment, last.index) == (claim.segment, claim.index), "It ends with another chunk than is claimed.")
    _need(not last.is_resent, "In the claimed chunk nothing was computed.")
    _need(sha256(evidence.given).digest() == last.given, "The accused gave other bytes.")


def _check_bytes(evidence: Evidence, receipt: Receipt) -> None:
    """Headers are what was hashed, and the bytes fit them: as many for every position of the session."""
    sizes = set()
    for chunk in evidence.chunks:
        if chunk.leaf.is_resent:
            _need(not chunk.header, "A header where nothing was computed.")
            continue
        _need(sha256(chunk.header).digest() == chunk.leaf.header, "The accused committed to another header.")
        header = Header.from_bytes(chunk.header)
        _need(header.pieces[0].first == chunk.leaf.first, "A chunk begins elsewhere than its header.")
        size, left = divmod(len(chunk.taken), header.num_places)
        _need(not left, "The bytes of a chunk do not fit its header.")
        sizes.add((header.codec, size))
    _need(len(sizes) == 1, "Chunks of one session differ in what a position takes.")
    profile = profile_digest(evidence.weights, evidence.codec, evidence.adapter)
    _need(profile == receipt.profile, "The weights were held in another way.")
