"""Make of what an audit has opened what others need to be convinced: evidence, and the receipt that it stands under.

    opening    inputs of positions 0 to end, leaves, headers       evidence    chunks of the session's tree, one by one
               outputs of the chunk                                            outputs of the last

A claim must open all chunks of the tree up to the claimed one. So it cannot be made of a session in which something
before was cropped, nor at an end where ids or logits go. Pure; copies all inputs, so not in the event loop.
"""

from __future__ import annotations

from dht.records import Envelope
from node.check.evidence import Evidence, OpenedChunk
from node.check.headers import Header
from node.claims.accuser import Accusation
from node.client.audit_opening import Opening
from node.commitment.chunks import Leaf, cut_payload
from node.errors import CannotCheck


def accusation_of(opening: Opening, error_ppm: int) -> Accusation:
    """Return what accuses a stage of a chunk that a judge found false.

    Args:
        opening: what was judged.
        error_ppm: median error that was found, millionths of the span's increment.

    Raises:
        CannotCheck: nobody can be convinced by such a session.
    """
    if {part.codec for part in (opening.inputs, *opening.outputs)} != {opening.codec}:
        raise CannotCheck("Ids and logits are nothing that a claim can be about.")
    places = [leaf.is_resent or (leaf.segment, leaf.index) for leaf in opening.leaves]
    claimed = places.index((opening.segment, opening.index))
    chunks = tuple(_opened(opening, leaf) for leaf in opening.leaves[: claimed + 1])
    envelope = Envelope.from_bytes(opening.receipt)
    evidence = Evidence(
        offer=opening.offer,
        offer_signature=opening.offer_signature,
        accept_signature=opening.accept_signature,
        weights=opening.stage.weights,
        adapter="",
        left_padding=opening.left_padding if any(opening.left_padding) else (),
        chunks=chunks,
        given=_given(opening, Header.from_bytes(chunks[-1].header)),
        rest=tuple(leaf.hash(opening.session) for leaf in opening.leaves[claimed + 1 :]),
    )
    return Accusation(evidence, opening.session, envelope.body, envelope.signatures[0], error_ppm)


def _opened(opening: Opening, leaf: Leaf) -> OpenedChunk:
    """Open one chunk of the tree: what went in, piece by piece, as it was hashed."""
    bare = Leaf(leaf.segment, leaf.index, leaf.first, leaf.header, leaf.taken, leaf.given)
    if leaf.is_resent:
        return OpenedChunk(bare, b"", b"")
    headers = opening.headers.get((leaf.segment, leaf.index))
    if headers is None:
        raise CannotCheck("Something before the chunk was cropped, so the whole tree cannot be opened.")
    header = opening.codec.encode() + b"\0" + headers
    inputs, taken = opening.inputs, bytearray()
    for piece in Header.from_bytes(header).pieces:
        first = piece.first - inputs.first
        for part in cut_payload(inputs.payload, inputs.codec, inputs.shape, first, first + piece.num_positions):
            taken += part
    return OpenedChunk(bare, header, bytes(taken))


def _given(opening: Opening, header: Header) -> bytes:
    """Return what came out for the chunk, as it was hashed."""
    if len(opening.outputs) > 1:  # The last stage's, kept as they came.
        return b"".join(part.payload for part in opening.outputs)
    (given,) = opening.outputs
    parts = bytearray()
    for piece in header.pieces:
        first = piece.first - given.first
        for part in cut_payload(given.payload, given.codec, given.shape, first, first + piece.num_positions):
            parts += part
    return bytes(parts)
