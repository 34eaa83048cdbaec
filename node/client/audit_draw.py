"""Which chunks of which stages are audited: a secret of the client's, drawn before the session begins. Pure.

What a stage sees of a session does not depend on the draw, so nothing tells it which chunk will be asked for until it
has committed to it, and every chunk may be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Set
from hashlib import blake2b

SECRET_BYTES = 32
"""Of a session's secret."""
PER_MILLE = 1000
WATCHED_PER_MILLE = 200
"""Of the chunks of a peer that is watched, at least, where any are drawn at all."""
_CHUNK = struct.Struct(">II")


def nobody(peer_id: str) -> bool:
    """Watch no peer more closely than others."""
    del peer_id
    return False


class Draw:
    """The draw of one session.

    Args:
        secret: random bytes that nobody else knows, of this session alone.
        per_mille: share of the chunks that are drawn, thousandths; of each stage by itself.
        wholly: peers of which every chunk is.
        is_watched: says of which peers more are; asked once for each.
    """

    def __init__(
        self,
        secret: bytes,
        per_mille: int,
        wholly: Set[str] = frozenset(),
        is_watched: Callable[[str], bool] = nobody,
    ) -> None:
        assert len(secret) == SECRET_BYTES
        self._wholly = wholly
        self._is_watched = is_watched
        self._secret = secret
        self._per_mille = per_mille
        self._rates: dict[str, int] = {}
        """By peer, thousandths."""

    def is_drawn(self, peer_id: str, segment: int, index: int) -> bool:
        """Say whether the chunk of a segment with this index is audited at the stage of a peer."""
        rate = self._rates.get(peer_id)
        if rate is None:
            rate = self._rates[peer_id] = self._rate_of(peer_id)
        chunk = _CHUNK.pack(segment, index) + peer_id.encode()
        number = int.from_bytes(blake2b(chunk, key=self._secret, digest_size=8).digest(), "big")
        return number * PER_MILLE >> 64 < rate

    def _rate_of(self, peer_id: str) -> int:
        if peer_id in self._wholly:
            return PER_MILLE
        if self._per_mille and self._is_watched(peer_id):
            return max(self._per_mille, WATCHED_PER_MILLE)
        return self._per_mille
