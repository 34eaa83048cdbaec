"""Which chunks of which stages are audited: a secret of the client's, drawn before the session begins. Pure.

What a stage sees of a session does not depend on the draw, so nothing tells it which chunk will be asked for until it
has committed to it, and every chunk may be.
"""

from __future__ import annotations

import struct
from collections.abc import Set
from hashlib import blake2b

SECRET_BYTES = 32
"""Of a session's secret."""
PER_MILLE = 1000
_CHUNK = struct.Struct(">II")


class Draw:
    """The draw of one session.

    Args:
        secret: random bytes that nobody else knows, of this session alone.
        per_mille: share of the chunks that are drawn, thousandths; of each stage by itself.
        wholly: peers of which every chunk is.
    """

    def __init__(self, secret: bytes, per_mille: int, wholly: Set[str] = frozenset()) -> None:
        assert len(secret) == SECRET_BYTES
        self._wholly = wholly
        self._secret = secret
        self._per_mille = per_mille

    def is_drawn(self, peer_id: str, segment: int, index: int) -> bool:
        """Say whether the chunk of a segment with this index is audited at the stage of a peer."""
        if peer_id in self._wholly:
            return True
        chunk = _CHUNK.pack(segment, index) + peer_id.encode()
        number = int.from_bytes(blake2b(chunk, key=self._secret, digest_size=8).digest(), "big")
        return number * PER_MILLE >> 64 < self._per_mille
