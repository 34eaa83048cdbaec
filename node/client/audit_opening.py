"""What an audit has opened: what one stage was given and what it gave, as it has signed for it. Computes nothing.

Every byte has been compared with the hashes that stand under the stage's own signature before one of these is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.commitment.chunks import Leaf


@dataclass(frozen=True, slots=True)
class Given:
    """Bytes of consecutive positions, as they travelled."""

    first: int
    """First position."""
    codec: str
    shape: tuple[int, int, int]
    """Rows, positions, width."""
    payload: bytes
    """In the codec, all positions as one payload; at the last stage of a client without weights, logits or ids."""


@dataclass(frozen=True, slots=True)
class Opening:
    """One chunk of one stage, ready to be run again."""

    manifest: bytes
    """Identity of the model, 32 bytes."""
    stage: Stage
    """The server: peer id, span, weights as it announced them."""
    previous: str
    """Peer that gave it its input; empty: the client."""
    dtype: str
    """What it says that it computes in."""
    profile: bytes
    """sha256 of how it has agreed to hold weights and send hidden states, 32 bytes."""
    codec: str
    """The session's."""
    session: bytes
    segment: int
    index: int
    first: int
    """First position of the chunk."""
    end: int
    """One past its last position."""
    left_padding: tuple[int, ...]
    """Positions of each row that are no text; empty: none."""
    thin: ThinTerms | None
    """What the ends of the route do; None: they take and give hidden states."""
    inputs: Given
    """What went in at the positions ``[0, end)``; token ids where the first stage embeds."""
    outputs: tuple[Given, ...]
    """What came out at the chunk's positions, in order. One, unless the stage is the last one: then as it came."""
    leaves: tuple[Leaf, ...]
    """What the stage has committed to, in its order, up to the receipt; their root stands in it."""
    receipt: bytes
    """Envelope of a receipt that both have signed."""
    offer: bytes
    """Body of the offer that it has accepted."""
    offer_signature: bytes
    """The client's."""
    accept_signature: bytes
    """The stage's, over the offer."""
    headers: Mapping[tuple[int, int], bytes]
    """For each chunk of the history up to this one, by segment and index: the headers of its pieces, as they are hashed
    behind the session's codec."""
